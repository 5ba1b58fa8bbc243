"""The lab itself, on one host of its own: fresh, cut off, powered off, removed without a trace."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.lab import Host, HostError, Lab, shell
from tests.support.wait import until


@pytest.fixture(scope="module")
def probe() -> Iterator[Lab]:
    lab = Lab.up("probe", hosts=1, memory="768M", fresh=True)
    yield lab
    lab.down()


@pytest.fixture
def host(probe: Lab) -> Host:
    return probe.hosts[0]


def test_the_host_is_fresh_and_knows_the_test_domains_and_the_world(probe: Lab, host: Host) -> None:
    assert not host.succeeds("command -v docker psql exportfs")
    assert host.run("cat /proc/sys/kernel/hostname; id -un").split() == ["n1", "root"]
    assert host.address in host.run(f"getent ahostsv4 any.name.{probe.zone}")
    assert host.run("getent hosts deb.debian.org").strip()
    assert abs(float(host.run("date +%s.%N")) - time.time()) < 30  # seconds; ssh itself takes one


def test_packages_of_the_roles_install_without_a_download(host: Host) -> None:
    said = host.run("apt-get install --yes --no-install-recommends --print-uris docker.io nfs-common postgresql")
    assert [line for line in said.splitlines() if line.startswith("'http")] == []


def test_a_power_cut_keeps_what_was_synced(host: Host) -> None:
    host.run("echo kept >/root/synced && sync")
    before = host.read("/proc/sys/kernel/random/boot_id")
    host.power_cut()
    assert not host.is_running
    with pytest.raises(HostError):
        host.run("true", timeout=5)
    host.start()
    assert host.read("/proc/sys/kernel/random/boot_id") != before
    assert host.read("/root/synced") == "kept\n"


def test_a_cut_network_comes_back(host: Host) -> None:
    host.cut_network()
    assert not host.is_connected
    with pytest.raises(HostError):
        host.run("true", timeout=5)
    assert host.is_running
    host.restore_network()
    until(lambda: host.succeeds("true", timeout=30), timeout=60, what="the host is reached again")


def test_an_image_is_built_and_pushed(probe: Lab) -> None:
    image = probe.build_image(
        "1", repository="probe", context=probe.folder / "ca", dockerfile="FROM scratch\nCOPY . /\n"
    )
    assert image.startswith(f"{probe.services.registry}/probe@sha256:")


def test_down_leaves_no_device_rule_process_or_file(probe: Lab) -> None:
    bridge, folder = probe.network.bridge, probe.folder
    assert bridge in shell.run(["ip", "link"])
    probe.down()
    assert bridge not in shell.run(["ip", "link"]) + shell.run(["ip", "netns"])
    assert probe.network.identity not in shell.run(["iptables-save"])
    assert subprocess.run(["pgrep", "-f", str(folder)], capture_output=True).stdout == b""
    assert not folder.exists()
    probe.down()  # once more: nothing to do

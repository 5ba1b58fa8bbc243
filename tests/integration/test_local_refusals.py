"""What stops `lyttle-ops local up` from starting: one sentence, the way out, and nothing left running."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lyttle_ops.local.layout import Layout
from tests.support.local import LocalCommand, local_command


@pytest.fixture
def local() -> Iterator[LocalCommand]:
    with local_command() as command:
        yield command


def test_a_busy_port_names_its_holder_and_the_way_out(local: LocalCommand) -> None:
    with socket.create_server((f"{local.base}.2", 8443)):
        refused = local.run("up")
    assert refused.returncode == 1
    assert f"port 8443 on {local.base}.2" in refused.stderr
    assert f"(process {os.getpid()})" in refused.stderr
    assert "--base" in refused.stderr
    assert local.processes() == {}


def test_a_port_held_on_all_addresses_is_avoided_by_moving_the_ports(local: LocalCommand) -> None:
    offset = 300 + os.getpid() % 700  # where nobody else's ports are
    with socket.create_server(("0.0.0.0", Layout(port_offset=offset).upstream_port)):
        refused = local.run("up", "--port-offset", str(offset))
    assert refused.returncode == 1
    assert "held on all addresses" in refused.stderr
    assert "--port-offset" in refused.stderr


def test_a_missing_program_names_its_package_and_make_setup(local: LocalCommand, tmp_path: Path) -> None:
    for program in ("nginx", "python3"):  # all but pebble
        found = shutil.which(program)
        assert found
        (tmp_path / program).symlink_to(found)
    refused = local.run("up", environment={"PATH": str(tmp_path)})
    assert refused.returncode == 1
    assert "pebble is not installed: run `make setup`" in refused.stderr


def test_a_state_folder_that_postgresql_cannot_reach_is_refused_before_anything_starts(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        return  # only root runs PostgreSQL as another user
    tmp_path.chmod(0o700)
    refused = LocalCommand(tmp_path / "state", "127.15.0").run("up")
    assert refused.returncode == 1
    assert f"may not enter {tmp_path}" in refused.stderr or "may not enter" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--nodes", "many"], 2, "not a valid integer"),
        (["--nodes", "0"], 1, "accepted: 1 to 200"),
        (["--set", "LOG_LEVEL"], 2, "NAME=VALUE"),
        (["--set", "FOO=bar"], 1, "FOO: there is no such setting"),
        (["--set", "log_level=LOUD"], 1, "LOG_LEVEL: Input should be 'DEBUG'"),
        (["--acme-directory", "https://127.0.0.1/dir"], 2, "go together"),
    ],
)
def test_wrong_usage_is_said_before_anything_starts(
    local: LocalCommand, arguments: list[str], code: int, said: str
) -> None:
    refused = local.run("up", *arguments)
    assert refused.returncode == code
    assert said in refused.stderr
    assert not local.state_folder.exists()


def test_commands_without_a_cluster_say_how_to_start_one(local: LocalCommand) -> None:
    for command in (["status", "--json"], ["kill", "n1"], ["start", "n1"]):
        refused = local.run(*command)
        assert refused.returncode == 1
        assert "no local cluster is running" in refused.stderr
        # The way out can be copied: this program, this folder.
        assert f"`{sys.executable} -m lyttle_ops.cli local up --state-dir {local.state_folder}`" in refused.stderr
    assert local.do("down") == "no local cluster was running\n"
    assert "nothing to remove" in local.do("down", "--wipe")
    assert not local.state_folder.exists()


def test_a_folder_that_is_no_clusters_is_left_as_it_is(local: LocalCommand, tmp_path: Path) -> None:
    kept = tmp_path / "logs" / "mine.log"
    kept.parent.mkdir()
    kept.touch()
    foreign = LocalCommand(tmp_path, local.base)
    refused = foreign.run("up")
    assert refused.returncode == 1
    assert f"{tmp_path} is not empty and not a local cluster's" in refused.stderr
    refused = foreign.run("down", "--wipe")
    assert refused.returncode == 1
    assert "nothing was stopped or removed" in refused.stderr
    assert foreign.do("down") == "no local cluster was running\n"
    assert sorted(tmp_path.rglob("*")) == [kept.parent, kept]


def test_wipe_says_what_it_removed_and_what_it_left(local: LocalCommand) -> None:
    with socket.create_server((f"{local.base}.2", 8443)):
        local.run("up")  # makes the folder and gets no further
    (local.state_folder / "holiday.jpg").touch()
    said = local.do("down", "--wipe")
    assert f"its data in {local.state_folder} is removed" in said
    assert "what is not the cluster's stays there: holiday.jpg" in said
    assert local.run("down", "--wipe").returncode == 1
    (local.state_folder / "holiday.jpg").unlink()
    local.state_folder.rmdir()

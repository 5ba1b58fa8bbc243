"""The kernel's NFS below the shared copy: cut off under load, read by a node without PostgreSQL, written too late."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.labcluster import NODE, Cluster, Machine, on_lab
from tests.support.wait import until

SHARED = "/var/lib/lyttle-ops/shared"  # NFS makes nobody of a host's root: who reads is the user in a node's container
# In a node's container: write a state without any site under the term that is given, as its leader did.
LATE_WRITE = """
import contextlib, dataclasses, sys
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.clock import SystemClock
from lyttle_ops.node.shared import SharedCopy, SharedCopyUnusable
from lyttle_ops.settings import load

settings = load()
copy = SharedCopy(settings.shared_dir, Keyring(*settings.master_keys()), lambda: int(sys.argv[1]), SystemClock())
state = copy.load()
with contextlib.suppress(SharedCopyUnusable):  # once written it finds the newer term
    copy._write(int(sys.argv[1]), dataclasses.replace(state, revision=state.revision + 900, proxies=[]))
print("written")
"""

pytestmark = on_lab


@contextmanager
def nfs_cut_off(cluster: Cluster) -> Iterator[None]:
    """The server answers nobody, its own host included; who waits for it waits on."""
    server = cluster.hosts[-1]
    rule = "INPUT -p tcp --dport 2049 -j DROP"
    server.run(f"iptables -I {rule}")
    try:
        yield
    finally:
        server.run(f"iptables -D {rule}")


@contextmanager
def postgres_stopped(cluster: Cluster) -> Iterator[None]:
    host = cluster.hosts[0]
    host.run("systemctl stop 'postgresql@*' postgresql")
    try:
        yield
    finally:
        host.run("systemctl start postgresql 'postgresql@*' --all")


def test_nfs_cut_off_fails_nothing_and_new_tasks_start(cluster: Cluster) -> None:
    before = cluster.tasks()
    with cluster.load("nfs-cut-off") as load, nfs_cut_off(cluster):
        load.wait(500, 60)
        cluster.docker("service", "update", "--detach", "--force", NODE)
        until(lambda: cluster.update_state() == "completed", 900, "new tasks on every node", every=2)
        assert not set(before.values()) & set(cluster.tasks().values())
    cluster.check_websockets(load.report().check())
    domain = "nfs-is-back.example.test"
    cluster.publish(domain)
    until(lambda: newest_copy_has(cluster, cluster.hosts[1], domain), 300, "the copy is written again", every=2)


def start_from_the_shared_copy(cluster: Cluster, host: Machine) -> None:
    """A node on `host` starts with PostgreSQL away and without a snapshot of its own, as on a machine made anew, and
    serves DOMAIN. PostgreSQL is back at the end. AssertionError when it does not."""
    containers = f"docker ps --all --quiet --filter label=com.docker.swarm.service.name={NODE}"
    with postgres_stopped(cluster):
        # Those that have ended hold the volume as well.
        host.run(f"docker rm -f $({containers}) && docker volume rm -f lyttlenginx_state")
        until(lambda: host.name in cluster.tasks(), 180, "a new task", every=2)
        until(lambda: cluster.serves(host), 120, "it serves", every=1)
        assert "shared copy" in host.run(f"docker logs {cluster.container(host)} 2>&1")


def test_a_node_without_postgresql_starts_from_the_shared_copy(cluster: Cluster) -> None:
    start_from_the_shared_copy(cluster, cluster.hosts[1])
    cluster.whole()


def test_a_late_write_of_a_thawed_leader_changes_nothing_that_nodes_read(cluster: Cluster) -> None:
    old = cluster.leader()
    reader = next(host for host in cluster.hosts if host is not old)
    frozen = cluster.container(old)
    old_term, _ = newest_manifest(cluster, reader)
    old.run(["docker", "pause", frozen])
    try:
        until(lambda: leader_elsewhere(cluster, old.name), 60, "another one leads", every=0.5)
        domain = f"term-{int(time.time())}.example.test"
        cluster.api("POST", "/proxy", {"proxy_pass_host": "http://demo:8080", "domains": domain}, reader)
        until(lambda: newest_copy_has(cluster, reader, domain), 120, "the new leader's copy", every=1)
        term, _ = newest_manifest(cluster, reader)
        assert term > old_term
    finally:
        old.run(["docker", "unpause", frozen])
    until(lambda: cluster.serves(old), 120, "the thawed node serves", every=1)
    # What it would have written had it been frozen in the middle of a write: authentic, newer by its number, and wrong.
    late = ["docker", "exec", "-i", cluster.container(old), "/opt/lyttle-ops/bin/python", "-", str(old_term)]
    assert "written" in old.run(late, stdin=LATE_WRITE, timeout=120)
    until(
        lambda: revision(cluster, reader, old_term) > revision(cluster, reader, term),
        60,
        "the late write is seen elsewhere",
        every=1,
    )
    start_from_the_shared_copy(cluster, reader)
    assert newest_manifest(cluster, reader)[0] >= term
    assert newest_copy_has(cluster, reader, domain)
    cluster.whole()


def leader_elsewhere(cluster: Cluster, name: str) -> bool:
    host = next(each for each in cluster.hosts if each.name != name)
    said = cluster.api("GET", "/cluster/leader", host=host)["leader"]
    return bool(said) and said["node"] != name


def look(cluster: Cluster, host: Machine, command: str) -> str:
    """What `command` says in the node's container on `host`."""
    return host.run(["docker", "exec", cluster.container(host), "sh", "-c", command], timeout=60)


def newest_manifest(cluster: Cluster, host: Machine) -> tuple[int, str]:
    """The highest term with a manifest, and that manifest, as `host` reads it."""
    path = look(cluster, host, f"ls -d {SHARED}/*/manifest.json | sort | tail -n 1").strip()
    return int(path.split("/")[-2]), look(cluster, host, f"cat {path}")


def revision(cluster: Cluster, host: Machine, term: int) -> int:
    """Of what the folder of `term` holds, as `host` reads it."""
    return int(json.loads(look(cluster, host, f"cat {SHARED}/{term:020d}/manifest.json"))["revision"])


def newest_copy_has(cluster: Cluster, host: Machine, domain: str) -> bool:
    newest = f"$(dirname $(ls -d {SHARED}/*/manifest.json | sort | tail -n 1))"
    return bool(look(cluster, host, f"grep -ls {domain} {newest}/state-*.json || true").strip())

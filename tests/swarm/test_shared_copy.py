"""The kernel's NFS below the shared copy: cut off under load, read by a node without PostgreSQL, written too late."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.labcluster import NODE, Cluster
from tests.support.wait import until

SHARED = "/var/lib/lyttle-ops/shared"


@contextmanager
def nfs_cut_off(cluster: Cluster) -> Iterator[None]:
    """The server answers nobody, its own host included; who waits for it waits on."""
    server = cluster.lab.hosts[-1]
    rule = "INPUT -p tcp --dport 2049 -j DROP"
    server.run(f"iptables -I {rule}")
    try:
        yield
    finally:
        server.run(f"iptables -D {rule}")


@contextmanager
def postgres_stopped(cluster: Cluster) -> Iterator[None]:
    host = cluster.lab.hosts[0]
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
    copied = f"grep -ls {domain} {SHARED}/*/state-*.json"
    until(lambda: cluster.lab.hosts[1].succeeds(copied, timeout=60), 300, "the copy is written again", every=2)


def test_a_node_without_postgresql_starts_from_the_shared_copy(cluster: Cluster) -> None:
    host = cluster.lab.hosts[1]
    old = cluster.container(host)
    with postgres_stopped(cluster):
        # Its own snapshot is gone, as on a machine that was made anew.
        host.run(f"docker rm -f {old} && docker volume rm -f lyttlenginx_state")
        until(lambda: host.name in cluster.tasks(), 180, "a new task", every=2)
        until(lambda: cluster.serves(host), 120, "it serves", every=1)
        said = host.run(["docker", "logs", cluster.container(host)]) + host.run(
            f"docker logs {cluster.container(host)} 2>&1"
        )
        assert "shared copy" in said
    cluster.whole()


def test_a_late_write_of_a_thawed_leader_changes_nothing_that_nodes_read(cluster: Cluster) -> None:
    old = cluster.leader()
    reader = next(host for host in cluster.lab.hosts if host is not old)
    frozen = cluster.container(old)
    old.run(["docker", "pause", frozen])
    try:
        until(lambda: leader_elsewhere(cluster, old.name), 60, "another one leads", every=0.5)
        domain = f"term-{int(time.time())}.example.test"
        cluster.api("POST", "/proxy", {"proxy_pass_host": "http://demo:8080", "domains": domain}, reader)
        until(lambda: newest_copy_has(cluster, domain), 120, "the new leader's copy", every=1)
        term, manifest = newest_manifest(cluster)
    finally:
        old.run(["docker", "unpause", frozen])
    until(lambda: cluster.serves(old), 120, "the thawed node serves", every=1)
    time.sleep(30)  # its late write, if it makes one
    later, still = newest_manifest(cluster)
    assert later > term or still == manifest
    assert newest_copy_has(cluster, domain)
    cluster.whole()


def leader_elsewhere(cluster: Cluster, name: str) -> bool:
    host = next(each for each in cluster.lab.hosts if each.name != name)
    said = cluster.api("GET", "/cluster/leader", host=host)["leader"]
    return bool(said) and said["node"] != name


def newest_manifest(cluster: Cluster) -> tuple[int, str]:
    """The highest term with a manifest, and that manifest."""
    host = cluster.lab.hosts[1]
    path = host.run(f"ls -d {SHARED}/*/manifest.json | sort | tail -n 1").strip()
    return int(path.split("/")[-2]), host.read(path)


def newest_copy_has(cluster: Cluster, domain: str) -> bool:
    host = cluster.lab.hosts[1]
    newest = f"$(dirname $(ls -d {SHARED}/*/manifest.json | sort | tail -n 1))"
    return host.succeeds(f"grep -qs {domain} {newest}/state-*.json", timeout=60)

"""A host without power: somebody else leads, certificates go on being issued, and it comes back by itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.labcluster import DOMAIN, NODE, Cluster, Machine, on_lab
from tests.support.load import Load
from tests.support.wait import until


@contextmanager
def without_power(host: Machine) -> Iterator[None]:
    host.power_cut()
    try:
        yield
    finally:
        host.start()


def test_the_leaders_host(cluster: Cluster) -> None:
    database, *others = cluster.hosts
    if cluster.leader() is database:  # whose end would end PostgreSQL too: let another one lead
        database.run(["docker", "kill", "--signal", "KILL", cluster.container(database)])
        until(lambda: cluster.leader() is not database, 60, "another leader", every=1)
        cluster.whole()
    old = cluster.leader()
    assert old in others
    rest = [host for host in cluster.hosts if host is not old]
    with Load([host.address for host in rest], DOMAIN, 40, cluster.lab.acme_root) as load:
        load.wait(100, 60)
        with without_power(old):
            until(lambda: leader_now(cluster, rest[0]) not in (None, old.name), 60, "another one leads", every=0.5)
            domain = f"cut-{int(time.time())}.example.test"
            cluster.publish(domain)
            for host in rest:
                until(lambda host=host: cluster.serves(host, domain), 180, f"{host.name} serves {domain}", every=1)
        until(lambda: cluster.serves(old, domain), 300, f"{old.name} is back and serves what it missed", every=1)
    load.report().check()
    until(lambda: active_nodes(cluster) == len(cluster.hosts), 180, "all nodes are active", every=2)


def test_a_manager_that_does_not_lead_us(cluster: Cluster) -> None:
    database, *others = cluster.hosts
    leader = cluster.leader()
    host = next(each for each in others if each is not leader)
    rest = [each for each in cluster.hosts if each is not host]
    with Load([each.address for each in rest], DOMAIN, 40, cluster.lab.acme_root) as load:
        load.wait(100, 60)
        with without_power(host):
            until(lambda: "Unreachable" in cluster.docker("node", "ls"), 120, "the other managers miss it", every=2)
            assert leader_now(cluster, database) == leader.name
            domain = f"manager-{int(time.time())}.example.test"
            cluster.publish(domain)
            for each in rest:
                until(lambda each=each: cluster.serves(each, domain), 180, f"{each.name} serves {domain}", every=1)
        until(lambda: cluster.serves(host, domain), 300, f"{host.name} is back and serves what it missed", every=1)
    load.report().check()
    all_managers_are_back(cluster)
    until(lambda: active_nodes(cluster) == len(cluster.hosts), 180, "all nodes are active", every=2)


@on_lab
def test_a_manager_with_the_database(cluster: Cluster) -> None:
    host, *rest = cluster.hosts
    with without_power(host):
        until(lambda: "Down" in cluster.docker("node", "ls"), 120, "the other managers miss it", every=2)
        for other in rest:  # its upstream was there too, so their own pages
            assert answers_itself(cluster, other)
        # Swarm is still governed.
        cluster.docker("service", "update", "--detach", "--label-add", "governed=yes", NODE)
    cluster.whole()
    until(lambda: active_nodes(cluster) == len(cluster.hosts), 180, "all nodes are active", every=2)
    all_managers_are_back(cluster)
    domain = f"back-{int(time.time())}.example.test"
    cluster.publish(domain)
    for each in cluster.hosts:
        until(lambda each=each: cluster.serves(each, domain), 180, f"{each.name} serves {domain}", every=1)


def all_managers_are_back(cluster: Cluster) -> None:
    told = ("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}")
    back = ["Ready Leader", "Ready Reachable", "Ready Reachable"]
    until(lambda: sorted(cluster.docker(*told).splitlines()) == back, 120, "all managers are back", every=1)


def leader_now(cluster: Cluster, host: Machine) -> str | None:
    said = cluster.api("GET", "/cluster/leader", host=host)["leader"]
    return str(said["node"]) if said else None


def active_nodes(cluster: Cluster) -> int:
    return int(cluster.api("GET", "/cluster/stats")["nodes"]["active"])


def answers_itself(cluster: Cluster, host: Machine) -> bool:
    """Whether its NGINX answers a request of its own, over HTTP."""
    command = "python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1/.well-known/lyttle-ops\")'"
    return host.succeeds(command)

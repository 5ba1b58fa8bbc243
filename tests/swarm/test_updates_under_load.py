"""Deploys, rollbacks, the holder's update and death, a node removed and added: under load, and no request fails."""

import time

import pytest

from tests.support.labcluster import NODE, PORTS, Cluster, refuses
from tests.support.quicklab import QuickLab
from tests.support.wait import until


@pytest.mark.core
def test_a_deploy_fails_no_request_and_websockets_live_until_the_drain(cluster: Cluster) -> None:
    image, before = cluster.other(), cluster.tasks()
    with cluster.load("deploy") as load:
        load.phase("deploy")
        done = cluster.ops("deploy", "--image", image, "--reason", "test").done()
        load.phase("after")
    report = load.report().check()
    after = cluster.tasks()
    assert not set(before.values()) & set(after.values())
    assert cluster.runs(image)
    assert len(report.websockets) >= len(cluster.hosts)  # each old task ended one
    cluster.check_websockets(report)
    proofs = done.document["nodes"]
    assert {proof["hostname"] for proof in proofs} == set(after)
    assert sum(proof["failures"] for proof in proofs) == 0
    newest = cluster.releases()[0]
    assert (newest["result"], newest["action"], newest["image"]) == ("succeeded", "deploy", image)


def test_a_rollback_fails_no_request(cluster: Cluster) -> None:
    if not cluster.runs(cluster.newer):
        cluster.ops("deploy", "--image", cluster.newer).done()
    with cluster.load("rollback") as load:
        cluster.ops("rollback", "--to", cluster.image, "--reason", "test").done()
    cluster.check_websockets(load.report().check())
    assert cluster.runs(cluster.image)
    assert cluster.releases()[0]["action"] == "rollback"


def test_a_rollback_to_nothing_changes_nothing_and_fails(cluster: Cluster) -> None:
    before, releases = cluster.tasks(), cluster.releases()
    refused = cluster.ops("rollback", "--to", "9.9.9")
    assert refused.code == 3, str(refused)
    assert "9.9.9" in str(refused)
    assert cluster.tasks() == before
    assert cluster.releases() == releases


def test_an_update_of_the_holder_itself_fails_no_request(cluster: Cluster) -> None:
    before = cluster.tasks(PORTS)
    with cluster.load("holder-update") as load:
        done = cluster.play("deploy", stack_image=cluster.newer, stack_update_ports=True)
        assert done.code == 0, done.output[-4000:]
    report = load.report().check()
    cluster.check_websockets(report)
    assert not set(before.values()) & set(cluster.tasks(PORTS).values())


def test_a_holder_that_is_killed_and_a_deploy_after_it_fail_no_request(cluster: Cluster) -> None:
    host = cluster.hosts[1]
    wanted = cluster.other()
    with cluster.load("holder-killed") as load:
        load.phase("killed")
        killed = cluster.container(host, PORTS)
        host.run(["docker", "kill", "--signal", "KILL", killed])
        until(lambda: cluster.container(host, PORTS) != killed, 120, "another holder", every=1)
        until(lambda: host.name in cluster.tasks(PORTS), 120, "the holder is healthy", every=1)
        load.phase("deploy")
        cluster.ops("deploy", "--image", wanted).done()
    cluster.check_websockets(load.report().check())


def test_a_node_is_removed_and_added_and_fails_no_request(cluster: Cluster) -> None:
    host = cluster.hosts[1]
    with cluster.load("node-remove-add") as load:
        load.pause(host.address)  # as a load balancer takes it out
        cluster.ops("node", "remove", host.name, "--yes").done()
        assert host.name not in cluster.docker("node", "ls", "--format", "{{.Hostname}}").split()
        until(lambda: refuses(host.address), 15, "the removed node refuses clients")
        if isinstance(cluster.lab, QuickLab):  # a node without systemd, which Ansible cannot make one
            cluster.lab.swarm.join(cluster.lab.host(host.name))
            cluster.docker("node", "update", "--label-add", "lyttle.edge=true", host.name)
        else:
            cluster.ops("node", "add", host.name).done()
        until(lambda: cluster.serves(host), 60, "it serves again")
        load.resume(host.address)
    cluster.check_websockets(load.report().check())


def test_clients_are_refused_soon_after_the_service_was_removed(cluster: Cluster) -> None:
    cluster.docker("service", "rm", NODE)
    removed = time.monotonic()
    # The drain of the old tasks comes first: they accept nothing meanwhile.
    for host in cluster.hosts:
        until(
            lambda host=host: refuses(host.address),
            15 - (time.monotonic() - removed),
            f"{host.name} refuses",
            every=0.2,
        )
    cluster.ops("deploy", "--image", cluster.image).done()
    with cluster.load("service-removed") as load:
        pass
    load.report().check()

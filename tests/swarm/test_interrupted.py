"""A deploy that is killed, and two at once: the next command can handle it, under load, and no request fails."""

import pytest

from tests.support.labcluster import Cluster
from tests.support.wait import until


def lock(cluster: Cluster) -> bool:
    return "lyttlenginx_deploy_lock" in cluster.docker("config", "ls", "--format", "{{.Name}}").split()


@pytest.mark.core
def test_a_deploy_that_was_killed_is_taken_over_by_the_next(cluster: Cluster) -> None:
    image = cluster.other()
    with cluster.load("deploy-killed") as load:
        first = cluster.start("deploy", "--image", image, "--reason", "killed in the middle")
        until(lambda: cluster.update_state() == "updating", 300, "the update has begun", every=0.5)
        first.kill()
        first.communicate()
        assert lock(cluster)
        done = cluster.ops("deploy", "--image", image, "--reason", "again").done()
    cluster.check_websockets(load.report().check())
    assert cluster.runs(image)
    assert not lock(cluster)
    assert {proof["hostname"] for proof in done.document["nodes"]} == set(cluster.tasks())
    results = [(record["result"], record["reason"]) for record in cluster.releases()[:2]]
    assert results == [("succeeded", "again"), ("interrupted", "killed in the middle")]


def test_of_two_deploys_at_once_one_is_refused_and_told_who_deploys(cluster: Cluster) -> None:
    image = cluster.other()
    with cluster.load("two-deploys") as load:
        first = cluster.start("deploy", "--image", image, "--reason", "the first of two")
        until(lambda: lock(cluster), 180, "the first holds the lock", every=0.5)
        refused = cluster.ops("deploy", "--image", image, "--reason", "the second of two")
        assert refused.code == 3, str(refused)
        assert "the first of two" in str(refused.document), str(refused)
        cluster.finish(first).done()
    cluster.check_websockets(load.report().check())
    assert cluster.runs(image)
    assert cluster.releases()[0]["reason"] == "the first of two"

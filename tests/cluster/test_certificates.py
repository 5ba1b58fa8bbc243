"""What the cluster is for: a domain added anywhere is served everywhere, with one certificate issued once."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, at_once, running_cluster
from tests.support.wait import until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture(autouse=True)
def _counted_from_zero(cluster: Cluster) -> None:
    cluster.ca.reset()


def test_one_post_is_served_by_every_node_with_one_certificate_ordered_once(cluster: Cluster) -> None:
    assert cluster.add("one.example.test").status_code == 201
    cluster.wait_for_certificate("one.example.test", timeout=15)
    serials = {cluster.serial(node, "one.example.test") for node in cluster.nodes}
    assert len(serials) == 1
    for node in cluster.nodes:
        status, body = cluster.get(node, "one.example.test", "/hello")
        assert status == 200
        assert b'"path": "/hello"' in body
    assert cluster.ca.orders == 1


def test_fifty_domains_posted_to_three_nodes_at_once_are_fifty_orders(cluster: Cluster) -> None:
    names = [f"fifty-{number}.example.test" for number in range(50)]
    nodes = list(cluster.nodes)
    answers = at_once([lambda i=i, name=name: cluster.add(name, node=nodes[i % 3]) for i, name in enumerate(names)])
    assert [answer.status_code for answer in answers] == [201] * 50

    def served_everywhere() -> bool:
        certificates = cluster.call("GET", "/certificates").json()["items"]
        mine = [each for each in certificates if each["domains"][0] in names]
        return len(mine) == 50 and all(each["installed"]["nodes"] == 3 for each in mine)

    until(served_everywhere, timeout=90, every=0.2)
    assert cluster.ca.orders == 50
    for name in names[::10]:
        assert len({cluster.serial(node, name) for node in nodes}) == 1


def test_one_domain_posted_to_three_nodes_at_once_is_one_entry(cluster: Cluster) -> None:
    answers = at_once([lambda node=node: cluster.add("same.example.test", node=node) for node in cluster.nodes])
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    created = next(answer.json()["id"] for answer in answers if answer.status_code == 201)
    for answer in answers:
        if answer.status_code == 409:
            error = answer.json()["error"]
            assert error["code"] == "domain_taken"
            assert str(created) in error["message"]
    cluster.wait_for_certificate("same.example.test")
    assert cluster.ca.orders == 1


def test_renew_called_on_three_nodes_at_once_is_one_order(cluster: Cluster) -> None:
    cluster.add("renewed.example.test")
    before = cluster.wait_for_certificate("renewed.example.test")
    cluster.wait_settled()
    path = f"/certificates/{before['id']}/renew"
    answers = at_once([lambda node=node: cluster.call("POST", path, node=node) for node in cluster.nodes])
    assert {answer.status_code for answer in answers} <= {200, 202}

    def renewed() -> bool:
        now = cluster.wait_for_certificate("renewed.example.test")
        return bool(now["serial"] != before["serial"])

    until(renewed, timeout=30)
    assert cluster.ca.orders == 2
    assert len({cluster.serial(node, "renewed.example.test") for node in cluster.nodes}) == 1


def test_http_is_served_while_the_certificate_is_pending(cluster: Cluster) -> None:
    held = cluster.ca.fault("newOrder", action="hold")
    try:
        entry = cluster.add("pending.example.test").json()
        host = cluster.nodes["n2"]["http"]

        def plain() -> bool:
            answer = cluster._session.get(f"{host}/x", headers={"Host": "pending.example.test"}, timeout=5)
            return answer.status_code == 200 and answer.json()["path"] == "/x"

        until(plain, timeout=10)
        shown = cluster.call("GET", f"/proxy/{entry['id']}").json()
        assert shown["certificate"]["state"] in ("pending", "issuing")
    finally:
        held.release()
    cluster.wait_for_certificate("pending.example.test")


def test_a_failed_name_shows_the_cas_words_and_stops_nobody(cluster: Cluster) -> None:
    problem = {
        "type": "urn:ietf:params:acme:error:rejectedIdentifier",
        "detail": "The CA's policy forbids this name",
        "status": 400,
    }
    cluster.ca.answer("newOrder", 400, problem)
    cluster.add("refused.example.test")

    def failed() -> bool:
        each = cluster.certificate("refused.example.test")
        return bool(each["state"] == "failed" and each["next_try_at"] and each["attempts"] == 1)

    until(failed, timeout=15)
    assert "The CA's policy forbids this name" in cluster.certificate("refused.example.test", node="n3")["last_error"]
    cluster.add("after-refused.example.test", node="n2")
    cluster.wait_for_certificate("after-refused.example.test")
    # Respected by all nodes: nobody asks again before its time.
    assert cluster.ca.orders == 1
    assert cluster.ca.seen["newOrder"] == 2


def test_a_changed_set_of_names_keeps_the_old_certificate_until_the_new_one_is_there(cluster: Cluster) -> None:
    entry = cluster.add("first.example.test").json()
    before = cluster.wait_for_certificate("first.example.test")
    held = cluster.ca.fault("newOrder", action="hold")
    try:
        body = {"domains": ["first.example.test", "second.example.test"]}
        assert cluster.call("PATCH", f"/proxy/{entry['id']}", body).status_code == 200
        assert held.reached.wait(15)
        assert f"{cluster.serial('n2', 'first.example.test'):x}" == before["serial"]
    finally:
        held.release()
    cluster.wait_for_certificate("second.example.test")
    assert cluster.serial("n1", "first.example.test") == cluster.serial("n3", "second.example.test")


def test_a_deleted_entry_is_served_nowhere(cluster: Cluster) -> None:
    entry = cluster.add("deleted.example.test").json()
    cluster.wait_for_certificate("deleted.example.test")
    assert cluster.call("DELETE", f"/proxy/{entry['id']}", node="n3").status_code == 204

    def gone() -> bool:
        for node in cluster.nodes:
            try:
                cluster.serial(node, "deleted.example.test")
            except OSError:
                continue
            return False
        return True

    until(gone, timeout=15)

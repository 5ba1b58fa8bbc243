"""Which node a host is that shall leave, dead or alive, and what speaks against letting it go."""

from typing import Any

import pytest

from tests.support import modules

module, engine = modules.load("lyttle_leaver"), modules.load("lyttle_engine")

EDGE = "node.labels.lyttle.edge == true"


def a_node(name: str, address: str = "0.0.0.0", **options: Any) -> dict[str, Any]:
    """`manages`: its word in the quorum; without it a worker, or a manager that has lost its vote (`role`)."""
    made: dict[str, Any] = {
        "ID": f"id-{name}",
        "Description": {"Hostname": name},
        "Status": {"State": options.get("state", "ready"), "Addr": address},
        "Spec": {
            "Role": options.get("role", "manager" if "manages" in options else "worker"),
            "Availability": "active",
            "Labels": {"lyttle.edge": options.get("edge", "true")},
        },
    }
    if "manages" in options:
        made["ManagerStatus"] = {"Reachability": options["manages"], "Addr": f"{address}:2377"}
    return made


def find(nodes: list[dict[str, Any]], name: str, *addresses: str, **said: Any) -> str:
    asked = {"id": "", "outside": False, "name": name, "addresses": [*addresses, name], **said}
    node = module.leaver(nodes, asked)
    return node["ID"] if node else ""


def objection(leaving: int, nodes: list[dict[str, Any]], constraints: tuple[str, ...] = (EDGE,)) -> str:
    service = {"Spec": {"TaskTemplate": {"Placement": {"Constraints": list(constraints)}}}}
    return str(module.objection(nodes[leaving], nodes, service))


class TestWhichNodeItIs:
    nodes = (a_node("web-4", "192.0.2.14"), a_node("n4", "192.0.2.99"), a_node("web-5", state="down"))

    def test_a_host_that_answers_says_it_itself(self) -> None:
        assert find([*self.nodes], "n4", "192.0.2.14", id="id-web-5") == "id-web-5"

    def test_a_dead_host_is_known_by_its_address_whatever_it_is_called(self) -> None:
        assert find([*self.nodes], "n4", "192.0.2.14") == "id-web-4"

    def test_without_an_address_that_swarm_knows_the_name_counts(self) -> None:
        assert find([*self.nodes], "web-5", "192.0.2.15") == "id-web-5"

    def test_a_manager_that_calls_itself_by_no_address_is_known_by_the_one_of_raft(self) -> None:
        manager = a_node("web-1", manages="reachable")
        manager["ManagerStatus"]["Addr"] = "192.0.2.11:2377"
        assert find([manager], "n1", "192.0.2.11") == "id-web-1"

    def test_a_dead_host_that_is_none_of_them_is_refused_with_what_there_is(self) -> None:
        with pytest.raises(
            engine.EngineError, match=r"no node of the Swarm has its address.*web-4 at 192\.0\.2\.14 \(ready"
        ):
            find([*self.nodes], "n7", "192.0.2.17")

    def test_two_that_it_may_be_are_refused(self) -> None:
        twice = [a_node("old", "192.0.2.14", state="down"), *self.nodes]
        with pytest.raises(engine.EngineError, match="more than one node"):
            find(twice, "n4", "192.0.2.14")

    def test_a_host_that_says_it_is_in_no_swarm_is_none_that_is_there(self) -> None:
        assert find([*self.nodes], "n4", "192.0.2.14", outside=True) == ""
        assert find([*self.nodes], "web-5", outside=True) == "id-web-5"  # what is left of it


class TestWhatSpeaksAgainstIt:
    def test_a_node_that_serves_no_http_takes_nobodys_place(self) -> None:
        nodes = [a_node("n1"), a_node("n2", edge="false")]
        assert "No other node" in objection(0, nodes)
        assert objection(1, nodes) == ""

    def test_nor_does_one_that_is_away(self) -> None:
        assert "No other node" in objection(0, [a_node("n1"), a_node("n2", state="down")])

    def test_the_only_node_that_the_service_may_run_on_stays(self) -> None:
        nodes, pinned = [a_node("n1"), a_node("n2")], (EDGE, "node.hostname == n1")
        assert "rollback --global" in objection(0, nodes, pinned)
        assert objection(1, nodes, pinned) == ""

    def test_a_majority_of_managers_has_to_be_left(self) -> None:
        nodes = [
            a_node("n1", manages="reachable"),
            a_node("n2", manages="reachable"),
            a_node("n3", manages="unreachable"),
        ]
        assert "1 of the 2 managers" in objection(0, nodes)
        assert objection(2, nodes) == ""

    def test_lost_managers_have_no_vote_in_a_cluster_made_anew(self) -> None:
        lost = [a_node(name, role="manager", state="down") for name in ("n2", "n3")]
        assert objection(1, [a_node("n1", manages="reachable"), *lost]) == ""

    def test_without_the_service_nothing_is_lost(self) -> None:
        nodes = [a_node("n1", manages="reachable"), a_node("n2", edge="false", manages="reachable")]
        assert module.objection(nodes[0], nodes, None) == ""

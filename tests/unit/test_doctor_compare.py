"""What the doctor concludes from all hosts together."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

UTILS = Path(__file__).parents[2] / "roles" / "doctor" / "module_utils"
FINE = {"hostname": "", "role": "manager", "availability": "active", "state": "ready", "edge": True, "reachable": True}


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    """The module as Ansible would load it beside its sibling."""
    for name in ("lyttle_checks", "lyttle_compare"):
        full = f"ansible.module_utils.{name}"
        spec = importlib.util.spec_from_file_location(full, UTILS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules["ansible.module_utils.lyttle_compare"]


def cluster(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Three managers in order, `changes` applied to their Swarm nodes."""
    nodes = [{**FINE, "id": f"id-{name}", "hostname": name, **changes.get(name, {})} for name in ("n1", "n2", "n3")]
    facts: dict[str, Any] = {"cluster_id": "c", "nodes": nodes}
    return {
        name: {"clock": 0.0, "address": "192.0.2.1", "edge": True, "facts": {**facts, "node_id": f"id-{name}"}}
        for name in ("n1", "n2", "n3")
    }


def wrong(compare: ModuleType, hosts: dict[str, dict[str, Any]], addresses: list[str] | None = None) -> list[str]:
    found = compare.findings(hosts, 2.0, addresses or [])
    assert all({"host", "check", "ok", "level", "message", "remedy"} == set(each) for each in found)
    return [f"{each['host']} {each['check']}: {each['message']}" for each in found if not each["ok"]]


def test_a_cluster_in_order_has_nothing_to_mend(compare: ModuleType) -> None:
    assert wrong(compare, cluster()) == []


def test_nodes_that_are_down_drained_or_mislabelled_are_named(compare: ModuleType) -> None:
    hosts = cluster(n1={"edge": False}, n2={"state": "down", "reachable": False}, n3={"availability": "drain"})
    assert wrong(compare, hosts) == [
        "cluster quorum: n2 cannot be reached as managers; 2 of 3 remain",
        "n1 labels: its label lyttle.edge is missing, the inventory says otherwise",
        "n2 swarm: the Swarm says that it is down",
        "n3 swarm: its availability is drain",
    ]


def test_two_swarms_in_one_inventory_are_seen(compare: ModuleType) -> None:
    hosts = cluster()
    hosts["n2"]["facts"]["cluster_id"] = "other"
    assert wrong(compare, hosts) == ["cluster swarm: the managers belong to different Swarms"]


def test_a_clock_that_differs_is_named_with_its_side(compare: ModuleType) -> None:
    hosts = cluster()
    hosts["n1"]["clock"], hosts["n2"]["clock"], hosts["n3"]["clock"] = 0.2, 0.1, -7.0
    assert wrong(compare, hosts) == ["n3 clock: its clock is 7.1 s behind the others"]


def test_a_node_without_the_image_is_named(compare: ModuleType) -> None:
    image = "r.test/lyttle-ops:1@sha256:ab"
    hosts = cluster()
    for host in hosts.values():
        host["facts"] |= {"service_image": image, "images": ["r.test/lyttle-ops:<none>", "r.test/lyttle-ops@sha256:ab"]}
    assert wrong(compare, hosts) == []
    hosts["n2"]["facts"]["images"] = ["r.test/lyttle-ops@sha256:cd"]
    assert wrong(compare, hosts) == [f"n2 image: {image} is not on this host"]


def test_domains_lead_to_the_nodes_or_to_the_load_balancer(compare: ModuleType) -> None:
    hosts = cluster()
    hosts["n1"]["facts"]["domains"] = ["localhost", "nowhere.invalid"]
    for host in hosts.values():
        host["address"] = "127.0.0.1"
    assert wrong(compare, hosts) == ["cluster dns: nowhere.invalid does not resolve"]
    for host in hosts.values():
        host["address"] = "192.0.2.7"
    assert any("is no node's address" in each for each in wrong(compare, hosts))
    assert wrong(compare, hosts, ["127.0.0.1"]) == ["cluster dns: nowhere.invalid does not resolve"]

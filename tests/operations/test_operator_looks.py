"""What `lyttle-ops status` makes of the playbook's result: a table, and a sentence for each thing that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.operator import Checkout, checkout, tell

SERVICE = {
    "name": "lyttlenginx_lyttlenginx",
    "image": "r.test/lyttle-ops:1.2.3",
    "version": "1.2.3",
    "mode": "global",
    "replicas": None,
    "update_state": "completed",
    "update_message": "update completed",
}


def node(name: str, **changes: Any) -> dict[str, Any]:
    task = {"id": "t", "image": "i", "state": "running", "error": ""}
    return {
        "hostname": name, "id": f"id-{name}", "address": "192.0.2.1", "role": "manager", "availability": "active",
        "state": "ready", "edge": True, "task": task, "version": "1.2.3", "instance": "i", "release": "0123456789ab",
        "ready": True, "leader": name == "n1", "database_ok": True, "revision": 4, **changes,
    }  # fmt: skip


def told(nodes: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    ports = [{"hostname": each["hostname"], "task_state": "running", "error": ""} for each in nodes]
    return {
        "service": SERVICE, "nodes": nodes, "ports": ports, "leader": "n1", "lock": None, "drift": [],
        "certificates": [{"domains": ["a.test", "b.test"], "not_after": "2999-01-02T03:04:05Z",
                          "stage": "served on all nodes", "installed": 2, "nodes": 2}],
        **changes,
    }  # fmt: skip


def certificate(domain: str, not_after: str | None, stage: str, **changes: Any) -> dict[str, Any]:
    return {"domains": [domain], "not_after": not_after, "stage": stage, "installed": 0, "nodes": 5, **changes}


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, ["n1"])


def test_a_cluster_in_order_is_a_table_and_exit_code_0(work: Checkout) -> None:
    work.playbook("status", [tell(result=told([node("n1"), node("n2")]))])
    done = work.run("status")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines() == [
        "service  lyttlenginx_lyttlenginx, global, r.test/lyttle-ops:1.2.3",
        "leader   n1",
        "",
        "node  address    role     state  version  task     ready  release     revision",
        "n1    192.0.2.1  manager  ready  1.2.3    running  yes    0123456789  4",
        "n2    192.0.2.1  manager  ready  1.2.3    running  yes    0123456789  4",
        "",
        "certificate     until (UTC)       stage                installed",
        "a.test, b.test  2999-01-02 03:04  served on all nodes  2 of 2",
    ]


def test_each_thing_that_is_wrong_is_a_sentence_and_the_exit_code_1(work: Checkout) -> None:
    stopped = {"id": "t", "image": "i", "state": "failed", "error": "task: non-zero exit (1)"}
    result = told(
        [
            node("n1", database_ok=False, api_ok=False),
            node("n2", state="down", task=None, ready=None),
            node("n3", task=stopped),
            node("n4", ready=None),
            node("n5", edge=False, task=None, ready=None),
        ],
        leader=None,
        drift=["the service runs another image: changed by hand"],
        certificates=[
            certificate("a.test", "2020-01-02T03:04:05Z", "served on all nodes"),
            certificate("b.test", None, "not issued yet"),
            certificate("c.test", None, "failed 3 times", error="rateLimited: too many"),
            certificate("e.test", None, "served by another certificate; the new one: failed once", error="caa"),
            certificate("d.test", "2999-01-02T03:04:05Z", "renewal failed once", error="caa: forbidden"),
        ],
        lock={"owner": "ann@desk", "reason": "new release", "expires_at": "2027-01-01T00:00:00Z"},
    )
    work.playbook("status", [tell(result=result)])
    done = work.run("status")
    assert done.returncode == 1
    assert "lock     ann@desk (new release), until 2027-01-01T00:00:00Z" in done.stdout
    assert done.stdout.splitlines()[-12:] == [
        "n1: PostgreSQL cannot be used from there",
        "n1: its API does not answer: `docker service logs lyttlenginx_lyttlenginx` says why",
        "n2: the Swarm says down: is the machine on, does Docker run there?",
        "n3: no running task: task: non-zero exit (1)",
        "n4: it cannot be reached by ssh, so what its node says is unknown",
        "nobody leads: PostgreSQL is away, or no node is ready",
        "a.test: the certificate expired at 2020-01-02T03:04:05Z: served on all nodes",
        "b.test: no certificate: not issued yet",
        "c.test: no certificate: failed 3 times: rateLimited: too many",
        "e.test: served by another certificate; the new one: failed once: caa",
        "d.test: renewal failed once: caa: forbidden",
        "drift: the service runs another image: changed by hand",
    ]
    done = work.run("status", "--json")
    assert done.returncode == 0  # programs read what is wrong
    assert json.loads(done.stdout) == result


def test_one_node_for_a_while_is_in_order(work: Checkout) -> None:
    nodes = [node("n1"), node("n2", task=None, ready=None)]
    work.playbook("status", [tell(result=told(nodes, service={**SERVICE, "mode": "replicated", "replicas": 1}))])
    done = work.run("status")
    assert done.returncode == 0, done.stdout


def test_nothing_deployed_says_what_to_run(work: Checkout) -> None:
    work.playbook("status", [tell(result=told([], service={}))])
    done = work.run("status")
    assert done.returncode == 1
    assert "run `lyttle-ops playbook site`" in done.stdout

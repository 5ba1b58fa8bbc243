"""Nodes that die, freeze and come back: one leader, one certificate, nothing written by an old term."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, running_cluster
from tests.support.wait import until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture(autouse=True)
def _whole_again(cluster: Cluster) -> None:
    """Each test begins with three ready nodes, a leader and a standby."""
    cluster.ca.reset()
    alive = {node["name"] for node in cluster.local.status()["nodes"] if node["pid"]}
    for name in set(cluster.nodes) - alive:
        cluster.local.do("start", name)
    cluster.wait_ready()
    cluster.wait_settled()


def term(cluster: Cluster) -> tuple[int, str]:
    row = cluster.rows("SELECT term, node_name FROM leadership")[0]
    return row["term"], row["node_name"]


def test_kill_9_of_the_leader_gives_the_standby_the_next_term_at_once(cluster: Cluster) -> None:
    leader, standby = cluster.wait_settled()
    before, _ = term(cluster)
    os.kill(cluster.pid(leader), signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: term(cluster) == (before + 1, standby), timeout=20, every=0.001)
    took = time.monotonic() - killed
    # The bound is 100 ms for the median of 20 (benchmarks/bench_cluster.py); one try on a busy machine gets more, but
    # less than a time-out would take.
    assert took < 4.0, f"{took:.3f} s"
    # What the killed supervisor had started does not outlive it.
    until(lambda: not cluster.local.processes()[leader].is_alive())


def test_kill_9_of_the_standby_then_of_the_leader_ten_seconds_later(cluster: Cluster) -> None:
    leader, standby = cluster.wait_settled()
    third = next(name for name in cluster.nodes if name not in (leader, standby))
    before, _ = term(cluster)
    os.kill(cluster.pid(standby), signal.SIGKILL)
    until(lambda: cluster.wait_settled() == (leader, third), timeout=30)
    os.kill(cluster.pid(leader), signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: term(cluster) == (before + 1, third), timeout=20, every=0.001)
    assert time.monotonic() - killed < 4.0


def test_a_frozen_leader_is_replaced_within_seconds_and_writes_nothing_when_it_thaws(cluster: Cluster) -> None:
    leader, standby = cluster.wait_settled()
    before, _ = term(cluster)
    pid = cluster.pid(leader)
    os.kill(pid, signal.SIGSTOP)
    frozen = time.monotonic()
    try:
        until(lambda: term(cluster) == (before + 1, standby), timeout=30, every=0.005)
        took = time.monotonic() - frozen
        # idle_session_timeout is 5 s; in the middle of a write, idle_in_transaction_session_timeout comes on top.
        assert took < 14, f"{took:.2f} s"
        until(lambda: cluster.status_of(standby)["leader"], timeout=20)
    finally:
        os.kill(pid, signal.SIGCONT)
    # It finds out, says so, and its term is over: the row still names the new leader.
    until(lambda: not cluster.status_of(leader)["leader"], timeout=20)
    assert term(cluster) == (before + 1, standby)
    until(lambda: cluster.call("GET", "/health/ready", node=leader).status_code == 200, timeout=20)


@pytest.mark.parametrize(
    ("step", "when"),
    [
        ("newOrder", "before"),
        ("newOrder", "after"),
        ("challenge", "before"),
        ("challenge", "after"),
        ("finalize", "before"),
        ("finalize", "after"),
        ("certificate", "before"),
        ("certificate", "after"),
    ],
)
def test_kill_9_of_the_issuing_node_at_each_step_ends_in_one_certificate(
    cluster: Cluster, step: str, when: str
) -> None:
    domain = f"{step.lower()}-{when}.example.test"
    held = cluster.ca.fault(step, when, action="hold")
    cluster.add(domain)
    assert held.reached.wait(20), "the order never came to this step"
    order = cluster.rows(
        "SELECT o.node_name, o.order_url FROM certificate_orders o JOIN certificates c ON c.id = o.certificate_id"
        " WHERE c.domains = %s",
        [domain],
    )[0]
    cluster.local.do("kill", order["node_name"])
    held.release()
    other = next(name for name in cluster.nodes if name != order["node_name"])

    def issued() -> bool:
        return bool(cluster.certificate(domain, node=other)["state"] == "issued")

    until(issued, timeout=60, every=0.1)
    # Where the order's URL had been recorded the same order was resumed. Where it had not, the next node had to ask
    # again (the proxy passes the dead node's request on when it is released, so the CA sees two).
    assert cluster.ca.orders == (1 if order["order_url"] else 2)
    assert cluster.rows(
        "SELECT count(*) AS n FROM certificate_orders o JOIN certificates c ON c.id = o.certificate_id"
        " WHERE c.domains = %s AND o.state = 'issued'",
        [domain],
    ) == [{"n": 1}]


def test_sigterm_releases_the_leadership_at_once_and_exits_0(cluster: Cluster) -> None:
    leader, standby = cluster.wait_settled()
    before, _ = term(cluster)
    os.kill(cluster.pid(leader), signal.SIGTERM)
    until(lambda: term(cluster) == (before + 1, standby), timeout=4, every=0.001)
    process = cluster.local.processes()[leader]
    until(lambda: not process.is_alive(), timeout=30)
    assert "Stopped with code 0" in cluster.local.log(leader)
    status = {n["name"]: n["status"] for n in cluster.call("GET", "/cluster/nodes", node=standby).json()["items"]}
    assert status[leader] == "inactive"


def test_nginx_that_is_killed_is_back_at_once_without_the_workers_it_left(cluster: Cluster) -> None:
    leader, _ = cluster.wait_settled()
    host = cluster.nodes[leader]["http"]
    master = cluster.status_of(leader)["nginx"]["pid"]
    workers = subprocess.run(["pgrep", "-P", str(master)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(master, signal.SIGKILL)

    def back() -> bool:
        status = cluster.status_of(leader)
        answer = cluster._session.get(f"{host}/.well-known/lyttle-ops", timeout=2)
        return status["nginx"]["pid"] not in (None, master) and answer.status_code == 200

    until(back, timeout=15)
    # The workers of the killed master, which held its sockets, are gone.
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), timeout=15)


def test_a_leader_whose_nginx_hangs_resigns_and_stands_again_when_it_serves(cluster: Cluster) -> None:
    leader, standby = cluster.wait_settled()
    before, _ = term(cluster)
    master = cluster.status_of(leader)["nginx"]["pid"]
    children = subprocess.run(["pgrep", "-P", str(master)], capture_output=True, text=True, check=True).stdout.split()
    frozen = [master, *map(int, children)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: term(cluster) == (before + 1, standby), timeout=20)
        until(lambda: cluster.call("GET", "/health/ready", node=leader).status_code == 503, timeout=10)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    cluster.wait_ready(leader, timeout=20)
    assert term(cluster) == (before + 1, standby)


def test_an_api_that_is_killed_is_back(cluster: Cluster) -> None:
    api = subprocess.run(
        ["pgrep", "-P", str(cluster.pid("n2")), "-f", "gunicorn"], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(api[0]), signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{api[0]}"))
    until(lambda: cluster.call("GET", "/cluster/leader", node="n2").status_code == 200, timeout=30)

"""Bad days: the database away, a CA that hangs, broken entries among good ones."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from lyttle_ops.certificates.network import CALL_TIMEOUT
from lyttle_ops.local.postgres import PostgresServer
from tests.support.cluster import Cluster, running_cluster
from tests.support.wait import until

AWAY = 15.0  # seconds the database is away; benchmarks/bench_cluster.py takes a minute


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture(autouse=True)
def _whole_again(cluster: Cluster) -> None:
    cluster.ca.reset()
    cluster.wait_ready()
    cluster.wait_settled()
    # The API says 503 for up to a second more after PostgreSQL came back.
    until(lambda: all(cluster.call("GET", "/proxy", node=node).status_code == 200 for node in cluster.nodes))


class Load:
    """Fresh HTTPS connections to every node at a steady pace, each one counted."""

    def __init__(self, cluster: Cluster, domain: str, per_second: float = 10.0) -> None:
        self.succeeded = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._mutex = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(cluster, node, domain, 1 / per_second)) for node in cluster.nodes
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, cluster: Cluster, node: str, domain: str, pause: float) -> None:
        at = time.monotonic()
        while not self._stop.is_set():
            try:
                status, _ = cluster.get(node, domain)
                problem = None if status == 200 else f"{node}: status {status}"
            except OSError as exc:
                problem = f"{node}: {exc!r}"
            with self._mutex:
                if problem:
                    self.failures.append(problem)
                else:
                    self.succeeded += 1
            at += pause
            self._stop.wait(max(0.0, at - time.monotonic()))


def server(cluster: Cluster) -> PostgresServer:
    """The cluster's own PostgreSQL."""
    parameters = conninfo_to_dict(cluster.dsn)
    return PostgresServer(
        cluster.local.state_folder / "postgres",
        str(parameters["host"]),
        int(str(parameters["port"])),
        str(parameters["password"]),
    )


def test_https_goes_on_while_postgresql_is_away_and_all_is_well_again_without_a_hand(cluster: Cluster) -> None:
    cluster.add("steady.example.test")
    cluster.wait_for_certificate("steady.example.test")
    database = server(cluster)
    with Load(cluster, "steady.example.test") as load:
        database.stop("immediate")
        away = time.monotonic()
        try:
            until(lambda: not any(cluster.status_of(node)["leader"] for node in cluster.nodes), timeout=20)
            until(lambda: cluster.call("GET", "/health/ready").status_code == 503, timeout=20)
            assert "database" in cluster.call("GET", "/health/ready").text
            assert cluster.call("GET", "/health/live").status_code == 200
            assert cluster.call("GET", "/proxy").status_code == 503
            until(lambda: time.monotonic() - away > AWAY, timeout=AWAY + 5, every=0.5)
            assert not any(cluster.status_of(node)["leader"] for node in cluster.nodes)
        finally:
            database.start()
        cluster.wait_ready(timeout=60)
        cluster.wait_settled()
        until(lambda: cluster.add("after.example.test", node="n3").status_code == 201)
        cluster.wait_for_certificate("after.example.test")
    assert load.failures == []
    assert load.succeeded > 10 * AWAY


def test_nginx_comes_back_while_postgresql_is_away(cluster: Cluster) -> None:
    cluster.add("reborn.example.test")
    cluster.wait_for_certificate("reborn.example.test")
    database = server(cluster)
    database.stop("immediate")
    try:
        master = cluster.status_of("n1")["nginx"]["pid"]
        os.kill(master, signal.SIGKILL)
        until(lambda: cluster.status_of("n1")["nginx"]["pid"] not in (None, master), timeout=15)
        until(lambda: cluster.get("n1", "reborn.example.test")[0] == 200, timeout=10)
    finally:
        database.start()
    cluster.wait_ready(timeout=60)


def test_a_node_that_starts_with_postgresql_away_serves_what_it_served_last(cluster: Cluster) -> None:
    cluster.add("snapshot.example.test")
    cluster.wait_for_certificate("snapshot.example.test")
    serial = cluster.serial("n2", "snapshot.example.test")
    database = server(cluster)
    cluster.local.do("kill", "n2")
    database.stop("immediate")
    try:
        started = threading.Thread(target=lambda: cluster.local.run("start", "n2"))
        started.start()
        until(lambda: cluster.serial("n2", "snapshot.example.test") == serial, timeout=60)
    finally:
        database.start()
    started.join(60)
    cluster.wait_ready(timeout=60)


def test_bad_entries_among_a_hundred_stop_nobody(cluster: Cluster) -> None:
    names = [f"many-{number}.example.test" for number in range(98)]
    for name in names:
        assert cluster.add(name, ssl=False).status_code == 201
    # Past the API's own checks, as an import or an older version may have left it.
    broken = cluster.rows(
        "INSERT INTO proxies (type, domains, proxy_pass_host, nginx_custom_code, revision)"
        " VALUES ('PROXY', ARRAY['broken.example.test'], 'http://127.0.0.1:9', 'proxy_read_timeout 5parsecs;',"
        " next_revision()) RETURNING id"
    )[0]["id"]
    problem = {"type": "urn:ietf:params:acme:error:dns", "detail": "no such name", "status": 400}
    cluster.ca.answer("newOrder", 400, problem)
    cluster.add("uncertifiable.example.test")

    def all_live() -> bool:
        for node in cluster.nodes:
            for name in (*names[::7], "uncertifiable.example.test"):
                host = {"Host": name}
                if cluster._session.get(f"{cluster.nodes[node]['http']}/", headers=host, timeout=5).status_code != 200:
                    return False
        return True

    until(all_live, timeout=60, every=0.5)
    until(lambda: str(broken) in cluster.status_of("n1")["quarantined"], timeout=10)

    def live() -> dict[str, Any]:
        return dict(cluster.call("GET", f"/proxy/{broken}").json()["live"])

    until(lambda: "proxy_read_timeout" in str(live()["errors"]))
    assert live()["nodes"] == 0
    until(lambda: "no such name" in str(cluster.certificate("uncertifiable.example.test")["last_error"]))


def test_a_ca_that_never_answers_holds_up_neither_a_start_nor_other_names(cluster: Cluster) -> None:
    hung = cluster.ca.fault("newOrder", action="hold", times=1)
    cluster.add("hung.example.test", node="n1")
    assert hung.reached.wait(15)
    cluster.add("quick.example.test", node="n2")
    cluster.wait_for_certificate("quick.example.test", timeout=20)

    def start_again() -> float:
        """Seconds until n3 is ready again, which `local start` waits for."""
        cluster.local.do("kill", "n3")
        started = time.monotonic()
        cluster.local.do("start", "n3")
        return time.monotonic() - started

    usual = start_again()
    # And a node that starts meanwhile, with the CA silent to everybody.
    silent = cluster.ca.fault("*", action="hold", times=1000)
    try:
        assert start_again() < usual + CALL_TIMEOUT - 2  # whoever waits for the CA waits for its time-out
        assert cluster.get("n3", "quick.example.test")[0] == 200
    finally:
        silent.release()
        hung.release()


def test_a_second_machine_with_the_same_name_is_refused_with_the_reason(cluster: Cluster) -> None:
    lines = Path(f"/proc/{cluster.pid('n1')}/environ").read_text().split("\0")
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    refused = subprocess.run(
        [sys.executable, "-m", "lyttle_ops.cli", "node"],
        env={
            **environment,
            "NODE_MACHINE_ID": "another-machine",
            "HTTP_LISTEN": f"{cluster.local.base}.99:8080",
            "HTTPS_LISTEN": f"{cluster.local.base}.99:8443",
            "API_LISTEN": f"{cluster.local.base}.99:3003",
            "STATE_DIR": str(cluster.local.state_folder / "impostor"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 1
    assert "another machine that is alive uses the node name 'n1'" in refused.stdout
    until(lambda: cluster.call("GET", "/health/ready", node="n1").status_code == 200, 30, "the first one is ready")

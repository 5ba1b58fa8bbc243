"""`lyttle-ops node` as a container runs it: how it starts, stops, gives up and keeps serving."""

import base64
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import psycopg
import pytest
import requests

from lyttle_ops.db import Database
from lyttle_ops.local.postgres import PostgresServer
from lyttle_ops.node import healthcheck
from tests.support import loopback, nginx
from tests.support.node import PASSWORD, NodeProcess, add_proxy
from tests.support.wait import until


@pytest.fixture
def node(database_url: str) -> Iterator[Callable[..., NodeProcess]]:
    made: list[NodeProcess] = []

    def make(url: str = database_url, **options: Any) -> NodeProcess:
        made.append(NodeProcess(url, **options))
        return made[-1]

    yield make
    for each in reversed(made):
        each.close()


@pytest.fixture
def slow_upstream() -> Iterator[tuple[str, threading.Event]]:
    """Answers a second after it was asked; the event is set when a request has come."""
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            time.sleep(1.0)
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"slow")

        def log_message(self, format: str, *args: object) -> None:
            pass

    host = loopback.address()
    server = ThreadingHTTPServer((host, loopback.port(host)), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://{host}:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_all_three_processes_log_json_lines_and_no_secret(node: Callable[..., NodeProcess], database_url: str) -> None:
    add_proxy(database_url, "a.example.test", "http://127.0.0.1:9")
    one = node().start()
    until(one.ready, timeout=30)
    with requests.Session() as session:
        session.trust_env = False
        session.get(f"http://{one.http}/", headers={"Host": "a.example.test"}, timeout=5)
        session.post(
            f"http://{one.api}/auth/login", json={"username": "admin", "password": PASSWORD}, timeout=10
        ).raise_for_status()
    one.stop()
    records = [json.loads(line) for line in one.output]
    assert {record["process"] for record in records} == {"node", "api", "nginx"}
    assert all({"time", "level", "message"} <= set(record) for record in records)
    database_password = database_url.split(":")[2].split("@")[0]
    for secret in (PASSWORD, database_password, one.environment["MASTER_KEY"]):
        assert secret not in one.text()


def test_sigterm_finishes_the_request_in_flight_and_exits_0(
    node: Callable[..., NodeProcess], database_url: str, slow_upstream: tuple[str, threading.Event]
) -> None:
    target, asked = slow_upstream
    add_proxy(database_url, "slow.example.test", target)
    one = node().start()
    until(one.ready, timeout=30)
    answers: list[str] = []

    def ask() -> None:
        with requests.Session() as session:
            session.trust_env = False
            answers.append(session.get(f"http://{one.http}/", headers={"Host": "slow.example.test"}, timeout=10).text)

    client = threading.Thread(target=ask)
    client.start()
    assert asked.wait(10)
    assert one.process
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 0
    client.join(10)
    assert answers == ["slow"]
    assert (one.folder / "state/restart.count").read_text().split() == ["0"]
    # Nothing of it is left on the machine.
    assert list((one.folder / "run").iterdir()) == []


def test_the_status_is_written_for_as_long_as_requests_are_in_flight(
    node: Callable[..., NodeProcess], database_url: str
) -> None:
    """Or a node that drains for longer than a status may be old would be told that it hangs."""
    asked, may_end = threading.Event(), threading.Event()

    class Slow(nginx.Handler):
        def do_GET(self) -> None:
            asked.set()
            may_end.wait(30)
            self.answer(200, b"slow")

    with nginx.upstream(Slow) as server:
        host, port = server.server_address[:2]
        add_proxy(database_url, "slow.example.test", f"http://{host!s}:{port}")
        one = node().start()
        until(one.ready, timeout=30)
        with socket.create_connection(one.http.split(":"), timeout=40) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: slow.example.test\r\nConnection: close\r\n\r\n")
            assert asked.wait(10)
            assert one.process
            one.process.send_signal(signal.SIGTERM)
            until(lambda: one.status()["state"] == "stopping", 10)
            began = one.status()["written_at"]
            until(lambda: one.status()["written_at"] > began + 3, 10, "the status goes on being written")
            may_end.set()
            assert nginx.parse(nginx.receive(connection))[2] == b"slow"
        assert one.wait() == 0
    assert "Traceback" not in one.text()
    assert list((one.folder / "run").iterdir()) == []


def test_an_api_that_hangs_is_started_anew_and_the_node_stays_ready(node: Callable[..., NodeProcess]) -> None:
    one = node()
    one.patch = "from lyttle_ops.node import node, supervisor; node.API_START = 5; supervisor.RENEWAL = 1"
    one.start()
    until(one.ready, timeout=30)
    assert one.process
    api = [
        each
        for each in psutil.Process(one.process.pid).children(recursive=True)
        if "webapi.gunicorn_conf" in " ".join(each.cmdline())
    ]
    assert len(api) == 2  # gunicorn and its worker
    for each in api:
        each.suspend()
    until(lambda: not any(each.is_running() for each in api), 60, "they are killed")
    until(one.ready, 30, "another API answers")
    assert "The API runs and does not answer; it is started anew" in one.text()
    assert one.status()["state"] == "ready"


def test_a_wrong_password_ends_an_instance_that_was_never_ready(
    node: Callable[..., NodeProcess], database_url: str
) -> None:
    one = node(database_url.replace("@", "wrong@", 1)).start()
    assert one.wait() == 1
    assert "password authentication failed" in one.text()
    assert database_url.split(":")[2].split("@")[0] not in one.text()


def health(one: NodeProcess) -> tuple[bool, list[str]]:
    """What the container's health check says, and its lines that are not ok."""
    report = healthcheck.examine(one.folder / "run")
    return report.healthy, [line for line in report.lines if not line.startswith("ok ")]


@pytest.fixture
def served_before(node: Callable[..., NodeProcess]) -> NodeProcess:
    """A node that was ready, and ended in order."""
    one = node().start()
    until(one.ready, timeout=30)
    until((one.folder / "state/desired.json").exists, 10)
    one.stop()
    return one


def test_an_unchanged_database_url_that_is_refused_counts_as_away(
    served_before: NodeProcess, database_url: str, postgres: PostgresServer
) -> None:
    name = database_url.rpartition("/")[2]
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} RENAME TO {name}_gone")
        try:
            served_before.start()
            until(lambda: served_before.status()["state"] == "ready", 30, "it serves and is ready")
            healthy, lines = health(served_before)
            assert (healthy, len(lines)) == (True, 1)
            assert "does not exist; NGINX serves on without it" in lines[0]
        finally:
            connection.execute(f"ALTER DATABASE {name}_gone RENAME TO {name}")
    until(served_before.ready, timeout=30)


def test_a_changed_database_url_that_never_worked_here_is_not_ready_whatever_the_error(
    served_before: NodeProcess, database_url: str
) -> None:
    served_before.environment["DATABASE_URL"] = "postgresql://u:p@127.0.0.1:1/x"  # as a server that is down
    served_before.start()
    until(lambda: served_before.status()["checks"]["nginx"]["ok"], 30, "it serves")
    until(lambda: served_before.status()["checks"]["api"]["ok"], 30, "the API answers")
    time.sleep(3)  # looks of a node that would become ready
    healthy, lines = health(served_before)
    assert not healthy
    assert lines[0] == "FAILED  app: is not ready but starting"
    assert "DATABASE_URL or its CA was changed" in served_before.text()
    served_before.stop()
    # The right one again, and it is ready.
    served_before.environment["DATABASE_URL"] = database_url
    served_before.start()
    until(served_before.ready, timeout=30)


def test_a_database_without_entries_that_is_another_one_ends_no_site(
    node: Callable[..., NodeProcess], database_url: str, empty_database_url: str
) -> None:
    """Its host was lost and a new one is empty, or DATABASE_URL names the wrong one."""
    one = node().start()

    def serves(domain: str) -> bool:
        return any(domain in file.read_text() for file in (one.folder / "run").glob("*/domains.json"))

    add_proxy(database_url, "kept.example.com", "http://127.0.0.1:9")
    until(one.ready, timeout=30)
    until(lambda: "kept.example.com" in (one.folder / "state/desired.json").read_text(), 20, "it is kept")
    one.stop()
    one.environment["DATABASE_URL"] = empty_database_url
    one.start()
    until(lambda: "it has no entry and revision" in one.text(), 30, "it is refused")
    until(lambda: serves("kept.example.com"), 30, "it serves what it knows")
    until(lambda: one.status()["checks"]["nginx"]["ok"], 30, "NGINX runs")
    until(lambda: "a first entry is made" in str(health(one)[1]), 30, "the health check says why")
    assert health(one)[1][0] == "FAILED  app: is not ready but starting"
    assert "kept.example.com" in (one.folder / "state/desired.json").read_text()
    add_proxy(empty_database_url, "new.example.com", "http://127.0.0.1:9")  # so it is meant
    until(one.ready, timeout=60)
    assert serves("new.example.com")
    assert not serves("kept.example.com")


def test_another_master_key_than_the_clusters_is_refused(node: Callable[..., NodeProcess]) -> None:
    first = node().start()
    until(first.ready, timeout=30)
    second = node(name="n2", MASTER_KEY=base64.b64encode(bytes(32)).decode()).start()
    assert second.wait() == 1
    assert "MASTER_KEY is not the cluster's" in second.text()
    assert first.ready()


def test_a_wrong_setting_is_one_sentence_and_exit_code_1(node: Callable[..., NodeProcess]) -> None:
    one = node(HTTP_LISTEN="eighty").start()
    assert one.wait() == 1
    assert "HTTP_LISTEN: 'eighty' is not an address" in one.text()
    assert "Traceback" not in one.text()


def test_after_five_restarts_a_node_that_was_never_ready_gives_up(node: Callable[..., NodeProcess]) -> None:
    one = node("postgresql://u:p@127.0.0.1:1/x")
    count = one.folder / "state/restart.count"
    for restarts in range(6):
        one.start()
        until(lambda restarts=restarts: count.read_text().split()[0] == str(restarts), timeout=20)
        until(lambda: any(path.stat().st_size == 0 for path in count.parent.glob("running/*")), timeout=20)
        one.kill()
    one.start()
    until(lambda: "ended uncleanly 6 times within 5 minutes and was never ready: giving up in 90 s" in one.text(), 20)
    # It waits, or Swarm would start the next one 10 s later, for ever; SIGTERM ends that.
    time.sleep(1)
    assert one.process
    assert one.process.poll() is None
    one.process.send_signal(signal.SIGTERM)
    assert one.wait(5) == 1
    assert count.read_text().split()[0] == "6"  # a refusal is no restart
    assert list(count.parent.glob("running/*")) == []


def test_after_five_restarts_a_node_that_had_been_ready_serves_and_waits_for_a_person(
    node: Callable[..., NodeProcess], database_url: str, slow_upstream: tuple[str, threading.Event]
) -> None:
    add_proxy(database_url, "kept.example.test", slow_upstream[0])
    one = node()
    for _ in range(6):
        one.start()
        # Not over HTTP: for a moment the API of the one before may still answer there.
        until(lambda: one.status()["state"] == "ready", timeout=30)
        one.kill()
    one.start()

    def serves() -> bool:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(f"http://{one.http}/", headers={"Host": "kept.example.test"}, timeout=5).text == "slow"

    until(serves, timeout=30)
    until(lambda: one.status()["state"] == "failed", timeout=10)
    until(lambda: one.get("/health/ready").status_code == 503 and "restart.count" in one.get("/health/ready").text)
    assert one.get("/health/live").status_code == 200
    assert one.status()["leader"] is False
    one.stop()
    # What the message tells a person to do works.
    (one.folder / "state/restart.count").unlink()
    one.start()
    until(one.ready, timeout=30)


def test_a_successor_runs_beside_its_predecessor_as_the_same_node(
    node: Callable[..., NodeProcess], database: Database
) -> None:
    first = node().start()
    until(first.ready, timeout=30)
    second = node(folder=first.folder).start()
    until(second.ready, timeout=30)
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT count(*) AS instances, count(DISTINCT node_name) AS nodes FROM instances WHERE left_at IS NULL"
        ).fetchone()
    assert rows == {"instances": 2, "nodes": 1}
    assert first.ready()
    assert first.process
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 0
    assert second.ready()


def test_a_port_that_somebody_else_holds_ends_an_instance_that_was_never_ready(
    node: Callable[..., NodeProcess],
) -> None:
    one = node()
    host, port = one.http.split(":")
    with socket.socket() as holder:
        holder.bind((host, int(port)))
        holder.listen()
        one.start()
        assert one.wait(90) == 1
    assert f"bind() to {one.http} failed" in one.text()

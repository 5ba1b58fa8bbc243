"""The API as the supervisor runs it: gunicorn on a TCP address and a unix socket."""

import http.client
import json
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
import requests

from lyttle_ops.db import Database
from tests.support import loopback, wait
from tests.support.api import PASSWORD, USERNAME, add_admin, check_error_shape, gunicorn, write_status


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


@pytest.fixture
def listen() -> str:
    host = loopback.address()
    return f"{host}:{loopback.port(host)}"


def test_gunicorn_serves_both_addresses_and_stops_cleanly(
    database: Database, database_url: str, listen: str, tmp_path: Path
) -> None:
    add_admin(database)
    write_status(tmp_path)
    with gunicorn(database_url, listen, tmp_path) as process:
        base = f"http://{listen}"
        login = requests.post(f"{base}/auth/login", json={"username": USERNAME, "password": PASSWORD}, timeout=10)
        bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
        assert requests.get(f"{base}/proxy", headers=bearer, timeout=10).json()["total"] == 0

        unix = UnixConnection(tmp_path / "api.sock")
        unix.request("GET", "/health/ready")
        answer = unix.getresponse()
        assert (answer.status, json.load(answer)["status"]) == (200, "ready")
        unix.close()
        assert not stat.S_IMODE((tmp_path / "api.sock").stat().st_mode) & 0o007

        # A body without a length is limited while it is read.
        chunks = (b"x" * 65_536 for _ in range(16))
        json_type = {**bearer, "Content-Type": "application/json"}
        refused = requests.post(f"{base}/proxy", data=chunks, headers=json_type, timeout=10)
        assert refused.status_code == 413
        check_error_shape(refused.json())

        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not (tmp_path / "api.sock").exists()
    lines = [json.loads(line) for line in (tmp_path / "gunicorn.log").read_text().splitlines()]
    assert {line["process"] for line in lines} == {"api"}
    assert any("POST /auth/login 200" in line["message"] for line in lines)
    assert PASSWORD not in (tmp_path / "gunicorn.log").read_text()


def test_a_request_in_flight_is_finished_after_sigterm(
    database: Database, database_url: str, listen: str, tmp_path: Path
) -> None:
    """The request waits for a row lock when the signal comes."""
    add_admin(database)
    with gunicorn(database_url, listen, tmp_path) as process:
        base = f"http://{listen}"
        login = requests.post(f"{base}/auth/login", json={"username": USERNAME, "password": PASSWORD}, timeout=10)
        bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
        answers: list[int] = []
        body = {"domains": "example.com", "proxy_pass_host": "http://backend"}

        def post() -> None:
            answers.append(requests.post(f"{base}/proxy", json=body, headers=bearer, timeout=20).status_code)

        with database.transaction() as connection:
            connection.execute("SELECT FROM cluster_state FOR UPDATE")
            thread = threading.Thread(target=post)
            thread.start()
            waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            wait.until(lambda: connection.execute(waiting).fetchone() is not None)
            process.send_signal(signal.SIGTERM)
            wait.until(lambda: "Handling signal: term" in (tmp_path / "gunicorn.log").read_text())
        thread.join(20)
        assert answers == [201]
        assert process.wait(10) == 0


def test_without_a_database_the_api_starts_lives_and_says_so(listen: str, tmp_path: Path) -> None:
    with gunicorn("postgresql://nobody:top-secret@127.0.0.1:1/none", listen, tmp_path):
        base = f"http://{listen}"
        body = {"username": "admin", "password": "anything at all"}
        answer = requests.post(f"{base}/auth/login", json=body, timeout=15)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
        check_error_shape(answer.json())
        assert int(answer.headers["Retry-After"]) > 0
        # Health costs no SQL, and the next request does not wait as long as the first.
        assert requests.get(f"{base}/health/live", timeout=5).status_code == 200
        took = []
        for _ in range(5):  # the gate is shut for a second after a failure, and a busy machine may come too late
            started = time.monotonic()
            assert requests.post(f"{base}/auth/login", json=body, timeout=15).status_code == 503
            took.append(time.monotonic() - started)
        assert min(took) < 0.9
    assert "top-secret" not in (tmp_path / "gunicorn.log").read_text()

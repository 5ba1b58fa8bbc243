"""The container's health check: which failure it names, what it bears, how long it takes.

It runs as in the image: by itself, without site-packages, beside a status file and real UNIX sockets.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from typing import Any

import pytest

from lyttle_ops.node import healthcheck

RELEASE = "0123456789abcdef"
AWAY = {"database": {"ok": False, "error": "connection refused"}}


class Service:
    """Answers HTTP on a UNIX socket as told: a status and a body, or nothing at all."""

    def __init__(self, path: Path, body: str) -> None:
        self.status, self.body, self.silent = 200, body, threading.Event()
        self.over = threading.Event()
        service = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                self.rfile.readline()
                if service.silent.is_set():
                    service.over.wait(10)
                    return
                self.wfile.write(f"HTTP/1.0 {service.status} x\r\nA: b\r\n\r\n{service.body}".encode())

        self._server = ThreadingUnixStreamServer(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Instance:
    """A run folder that looks like a ready node's, with processes that live."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.folder = run_dir, run_dir / "0badcafe"
        (self.folder / "releases" / RELEASE).mkdir(parents=True)
        (self.folder / "live").symlink_to(f"releases/{RELEASE}")
        # Something with NGINX's own words in its command line stands in for the master: only that is looked at.
        self.master = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)", "-p", f"{self.folder}/", "-c", "nginx.conf"]
        )
        (self.folder / "nginx.pid").write_text(f"{self.master.pid}\n")
        self.nginx = Service(self.folder / "nginx.sock", RELEASE)
        self.api = Service(self.folder / "api.sock", '{"status":"ok"}')
        self.write()

    def write(self, age: float = 0.0, **changes: Any) -> None:
        status = {
            "written_at": time.time() - age,
            "pid": os.getpid(),
            "state": "ready",
            "once_ready": True,
            "failure": None,
            "version": "1.2.3",
            "database": {"ok": True, "error": None},
            "nginx": {"error": None},
            "checks": {"nginx": {"ok": True, "message": "NGINX answers"}},
            **changes,
        }
        (self.folder / "status.json").write_text(json.dumps(status))

    def check(self) -> tuple[int, list[str]]:
        """Exit code, and the lines that are not ok."""
        done = subprocess.run(
            [sys.executable, "-I", "-S", healthcheck.__file__],
            env={"RUN_DIR": str(self.run_dir), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.stderr == ""
        return done.returncode, [line for line in done.stdout.splitlines() if not line.startswith("ok ")]

    def close(self) -> None:
        self.master.kill()
        self.master.wait()
        self.nginx.close()
        self.api.close()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    made = Instance(tmp_path)
    yield made
    made.close()


def test_six_checks_of_a_ready_node_are_ok(instance: Instance) -> None:
    assert instance.check() == (0, [])
    report = healthcheck.examine(instance.run_dir)
    named = [re.sub(r"^ok +(.*?):.*", r"\1", line) for line in report.lines]
    assert named == ["app", "NGINX", "NGINX HTTP", "NGINX configuration", "API", "database"]


def test_a_node_that_does_not_run_or_hangs(instance: Instance, tmp_path: Path) -> None:
    instance.write(age=11.6)
    assert instance.check() == (1, ["FAILED  app: hangs: its status is 12 s old"])
    dead = subprocess.Popen(["true"])
    dead.wait()
    instance.write(pid=dead.pid)
    assert instance.check() == (
        1,
        [f"FAILED  app: does not run: process {dead.pid}, which wrote the status, is gone"],
    )
    (instance.folder / "status.json").unlink()
    assert instance.check() == (1, [f"FAILED  app: does not run: there is no status file in {tmp_path}"])


def test_the_status_of_an_instance_that_died_is_not_taken_for_this_ones(instance: Instance) -> None:
    other = instance.run_dir / "deadbeef"
    other.mkdir()
    (other / "status.json").write_text(json.dumps({"written_at": time.time() - 100, "pid": 1, "state": "failed"}))
    (instance.run_dir / "half").mkdir()
    (instance.run_dir / "half" / "status.json").write_text("{")
    assert instance.check() == (0, [])


def test_nginx_that_died(instance: Instance) -> None:
    instance.master.kill()
    instance.master.wait()
    assert instance.check() == (1, ["FAILED  NGINX: does not run"])


def test_another_program_with_nginxs_old_pid_is_not_nginx(instance: Instance) -> None:
    (instance.folder / "nginx.pid").write_text(str(os.getpid()))
    assert instance.check() == (1, ["FAILED  NGINX: does not run"])


def test_nginx_that_accepts_and_says_nothing(instance: Instance) -> None:
    instance.nginx.silent.set()
    code, lines = instance.check()
    assert (code, lines) == (1, ["FAILED  NGINX HTTP: no answer on its own socket: silent for 0.7 s"])


def test_ports_on_which_nothing_answers(instance: Instance) -> None:
    instance.write(checks={"nginx": {"ok": False, "message": "nothing answers on 0.0.0.0:80: Connection refused"}})
    assert instance.check() == (1, ["FAILED  NGINX HTTP: nothing answers on 0.0.0.0:80: Connection refused"])


def test_nginx_that_serves_another_release_than_the_live_one(instance: Instance) -> None:
    instance.nginx.body = "fedcba9876543210"
    expected = f"FAILED  NGINX configuration: release {RELEASE} is live, NGINX serves fedcba9876543210"
    assert instance.check() == (1, [expected])
    (instance.folder / "live").unlink()
    assert instance.check() == (1, ["FAILED  NGINX configuration: there is none that passed its test"])


def test_a_refused_configuration_does_not_end_a_node_that_serves_the_last_good_one(instance: Instance) -> None:
    instance.write(nginx={"error": "unknown directive"})
    code, lines = instance.check()
    assert code == 0
    assert lines == [
        f"note    NGINX configuration: release {RELEASE} is served; a newer one was refused: unknown directive"
    ]


def test_an_api_that_does_not_answer_is_a_note_for_a_node_that_serves(instance: Instance) -> None:
    # Clients with eight silent connections are enough for that, and NGINX must not be killed for it.
    instance.api.silent.set()
    suffix = "; NGINX serves on without it"
    assert instance.check() == (0, [f"note    API: does not answer: silent for 0.7 s{suffix}"])
    instance.api.silent.clear()
    instance.api.status = 500
    assert instance.check() == (0, [f"note    API: does not answer: HTTP 500{suffix}"])
    (instance.folder / "api.sock").unlink()
    assert instance.check() == (0, [f"note    API: does not answer: No such file or directory{suffix}"])


def test_an_api_that_does_not_answer_fails_a_node_that_was_never_ready(instance: Instance) -> None:
    instance.api.silent.set()
    instance.write(state="starting", once_ready=False)
    assert instance.check() == (
        1,
        ["FAILED  app: is not ready but starting", "FAILED  API: does not answer: silent for 0.7 s"],
    )


def test_postgresql_away_is_a_note_for_a_node_that_serves(instance: Instance) -> None:
    instance.write(**AWAY)
    assert instance.check() == (
        0,
        ["note    database: not reachable: connection refused; NGINX serves on without it"],
    )


def test_postgresql_away_fails_a_node_that_was_never_ready(instance: Instance) -> None:
    # It may serve what an earlier instance served: an update with a wrong DATABASE_URL is rolled back all the same.
    instance.write(state="starting", once_ready=False, **AWAY)
    assert instance.check() == (
        1,
        ["FAILED  app: is not ready but starting", "FAILED  database: not reachable: connection refused"],
    )


def test_failure_mode_waits_for_a_person_when_the_node_once_was_ready(instance: Instance) -> None:
    (instance.folder / "api.sock").unlink()
    instance.write(state="failed", failure="api ended 6 times")
    assert instance.check() == (
        0,
        [
            "note    app: FAILURE MODE: api ended 6 times",
            "note    API: does not answer: No such file or directory; NGINX serves on without it",
        ],
    )


def test_a_node_that_stops_in_order_is_left_in_peace_while_it_says_so(instance: Instance) -> None:
    # NGINX and the API close their sockets first and finish what is in flight.
    (instance.folder / "api.sock").unlink()
    (instance.folder / "nginx.sock").unlink()
    instance.write(state="stopping")
    assert instance.check() == (0, ["note    app: is stopping"])
    instance.write(state="stopping", age=11.6)
    assert instance.check() == (1, ["FAILED  app: hangs: its status is 12 s old"])
    instance.write(state="stopping", once_ready=False, failure="no holder")
    assert instance.check()[1][0] == "FAILED  app: is not ready but stopping: no holder"


def test_failure_mode_of_a_new_version_that_never_was_ready_is_a_failure(instance: Instance) -> None:
    instance.write(state="failed", failure="api ended 6 times", once_ready=False)
    assert instance.check() == (1, ["FAILED  app: is not ready but failed: api ended 6 times"])


def test_each_failure_is_one_line_whatever_the_reason_looks_like(instance: Instance) -> None:
    instance.write(state="failed", once_ready=False, failure="PostgreSQL refuses:\n\tis it\n\tthere?")
    assert instance.check() == (1, ["FAILED  app: is not ready but failed: PostgreSQL refuses: is it there?"])


def test_all_silent_takes_less_than_two_seconds(instance: Instance) -> None:
    instance.nginx.silent.set()
    instance.api.silent.set()
    assert 2 * healthcheck.PATIENCE < 1.8
    started = time.monotonic()
    report = healthcheck.examine(instance.run_dir)
    assert not report.healthy
    assert time.monotonic() - started < 5  # the two, and what a busy machine takes


@pytest.mark.parametrize(
    ("check", "code", "line"),
    [
        ("exit 0", 0, ""),
        ("echo 'FAILED  app: it hangs'; exit 1", 1, "FAILED  app: it hangs\n"),
        ("exit 2", 2, "FAILED  the check itself could not be run (code 2)\n"),
        ("exit 127", 127, "FAILED  the check itself could not be run (code 127)\n"),
        (
            "exec sleep 30",
            124,
            "FAILED  the check itself did not end within 8 s: this machine's CPU is busy elsewhere\n",
        ),
        (
            "kill -9 $$",
            137,
            "FAILED  the check itself was killed: out of memory, or it did not end when told after 8 s\n",
        ),
    ],
)
def test_a_check_that_cannot_be_made_says_why(tmp_path: Path, check: str, code: int, line: str) -> None:
    for name, script in (("python3", check), ("timeout", 'shift 3; exec /usr/bin/timeout -k 1 2 "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["sh", Path(__file__).parents[2] / "healthcheck.sh"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (code, line)

"""`lyttle-ops local up` and its ends: pasted commands, Ctrl-C, SIGKILL, `down`; nothing is left running."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from lyttle_ops.local import processes
from lyttle_ops.local.processes import Process
from tests.support import wait
from tests.support.local import LocalCommand, local_command


@contextmanager
def _foreground(local: LocalCommand, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`local up` as at a terminal, its output in a pipe; killed at the end if it still runs."""
    with subprocess.Popen(
        local.argv("up", *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as up:
        try:
            yield up
        finally:
            up.kill()


def _everything(local: LocalCommand) -> set[Process]:
    """All processes of the cluster, the ones that its processes started included."""
    return {member for process in local.processes().values() for member in processes.family(process)}


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@pytest.fixture
def local() -> Iterator[LocalCommand]:
    with local_command() as command:
        yield command


def test_the_commands_that_up_shows_work_when_pasted_at_once(local: LocalCommand) -> None:
    said = local.do("up", "--nodes", "1", "--detach")
    commands = said[said.index("TOKEN=") : said.index("It goes on running")]
    # The headings between the commands are for people.
    script = re.sub(r"^\d\. .*$", "", commands, flags=re.MULTILINE)
    pasted = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert 'subjectAltName: host "demo.example.test" matched' in pasted.stdout, pasted.stdout + pasted.stderr
    assert '"host": "demo.example.test"' in pasted.stdout
    look = re.search(r"It goes on running: `(.*?)`", said)
    assert look is not None
    assert subprocess.run(["bash", "-c", look[1]], capture_output=True, timeout=60).returncode == 0


def test_status_names_what_is_dead_with_its_log_and_the_way_out(local: LocalCommand) -> None:
    local.do("up", "--nodes", "1", "--detach")
    well = local.run("status")
    assert (well.returncode, well.stderr) == (0, "")
    for service in ("PostgreSQL", "CA", "DNS, upstream"):
        assert re.search(rf"^{service} +running .* log /", well.stdout, re.MULTILINE), well.stdout

    (postmaster, *_) = (local.state_folder / "postgres" / "data" / "postmaster.pid").read_text().split()
    os.kill(int(postmaster), signal.SIGKILL)
    wait.until(lambda: "not ready (database)" in local.run("status").stdout, 20, "a failing check", every=0.2)
    local.processes()["ca"].send(signal.SIGKILL)
    companions = local.processes()["companions"]
    companions.send(signal.SIGSTOP)  # alive, and of no use
    dead = local.run("status")
    assert dead.returncode == 1
    assert re.search(r"^PostgreSQL +not running .*postgresql\.log$", dead.stdout, re.MULTILINE), dead.stdout
    assert re.search(r"^CA +not running .*pebble\.log$", dead.stdout, re.MULTILINE), dead.stdout
    assert re.search(r"^DNS, upstream +does not answer .*companions\.log$", dead.stdout, re.MULTILINE), dead.stdout
    assert re.search(r"^ +database: \S+", dead.stdout, re.MULTILINE)
    assert list(local.status()) == ["database", "ca", "admin", "upstream", "nodes"]

    # The hint, run as it stands, mends it.
    way_out = re.findall(r"`(.*?)`", dead.stdout)
    assert len(way_out) == 2
    for command in way_out:
        mended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
        assert mended.returncode == 0, mended.stderr
    assert local.run("status").returncode == 0

    local.do("kill", "n1")
    stopped = local.run("status")
    assert stopped.returncode == 1
    assert re.search(r"^n1 +stopped", stopped.stdout, re.MULTILINE)
    assert "local start n1 --state-dir" in stopped.stdout


def test_ctrl_c_stops_everything(local: LocalCommand) -> None:
    with _foreground(local, "--nodes", "1") as up:
        wait.until(lambda: local.processes() and local.status()["nodes"][0]["ready"], 60, "ready", every=0.2)
        running = _everything(local)
        base = local.base
        up.send_signal(signal.SIGINT)
        said = up.communicate(timeout=60)[0]
    assert up.returncode == 0, said
    assert "nothing is left running" in said
    assert not any(process.is_alive() for process in running)
    assert not _answers(f"{base}.250", 15432)
    # And what was shown can be pasted: three commands, no password in them.
    assert re.search(r"^TOKEN=\$\(curl", said, re.MULTILINE)
    assert "--cacert" in said
    password = (local.state_folder / "secrets" / "admin-password").read_text().strip()
    assert password not in said


def test_ctrl_c_during_the_start_stops_what_was_started(local: LocalCommand) -> None:
    with _foreground(local, "--nodes", "1") as up:
        wait.until(lambda: "n1" in local.processes(), 60, "a node")
        running = _everything(local)
        up.send_signal(signal.SIGINT)
        said = up.communicate(timeout=60)[0]
    assert up.returncode == 130
    assert said.endswith("interrupted; what had been started is stopped\n")
    assert not any(process.is_alive() for process in running)
    assert not _answers(f"{local.base}.250", 15432)


def test_a_node_that_cannot_start_ends_the_start_with_its_log(local: LocalCommand) -> None:
    failed = local.run("up", "--nodes", "1", "--set", "STATE_DIR=/proc/nowhere")
    assert failed.returncode == 1
    assert "n1 ended before it was ready" in failed.stderr
    assert str(local.state_folder / "logs" / "n1.log") in failed.stderr
    assert "STATE_DIR: /proc/nowhere cannot be written" in failed.stderr
    assert not _answers(f"{local.base}.250", 15432)
    assert not _answers(f"{local.base}.250", 14000)


def test_what_a_killed_up_left_is_stopped_by_the_next_one_and_data_survives(local: LocalCommand) -> None:
    with _foreground(local, "--nodes", "1") as up:
        wait.until(lambda: local.processes() and local.status()["nodes"][0]["ready"], 60, "ready", every=0.2)
        left = _everything(local)
        with psycopg.connect(local.status()["database"]["dsn"], autocommit=True) as connection:
            connection.execute("CREATE TABLE kept ()")
        up.kill()
        up.communicate()
    assert all(process.is_alive() for process in left)

    said = local.do("up", "--nodes", "1", "--detach")
    assert "an earlier run was killed and left" in said
    assert not any(process.is_alive() for process in left)
    with psycopg.connect(local.status()["database"]["dsn"]) as connection:
        assert connection.execute("SELECT to_regclass('kept') IS NOT NULL").fetchone() == (True,)

    running = _everything(local)
    assert local.do("down").strip().endswith("stopped")
    assert not any(process.is_alive() for process in running)
    local.do("down", "--wipe")
    assert not local.state_folder.exists()


def test_down_ends_a_foreground_up(local: LocalCommand) -> None:
    with _foreground(local, "--nodes", "1") as up:
        wait.until(lambda: "n1" in local.processes(), 60, "a node")
        running = _everything(local)
        local.do("down")
        up.communicate(timeout=10)
    assert not any(process.is_alive() for process in running)

"""Processes are recognised by pid and start, found with all they started, and never confused with others."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lyttle_ops.local import processes
from lyttle_ops.local.processes import Process
from tests.support import wait

# Starts a child in the same session and one in a session of its own, then waits.
PARENT = """
import subprocess, sys, time
for own in (False, True):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=own)
print("both", flush=True)
time.sleep(60)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Process]:
    """A process with two children, working in tmp_path."""
    log = tmp_path / "log"
    child = processes.launch([sys.executable, "-c", PARENT], log=log, folder=tmp_path, environment=os.environ)
    try:
        wait.until(lambda: log.read_text() == "both\n", what="children")
        process = processes.identify(child.pid)
        assert process is not None
        yield process
    finally:
        processes.kill_all(processes.strays(tmp_path))
        child.wait()


def test_a_recycled_pid_is_not_taken_for_the_process_that_had_it(parent: Process) -> None:
    boot, _, ticks = parent.started.partition(":")
    for stranger in (Process(parent.pid, f"{boot}:{int(ticks) - 1}"), Process(parent.pid, f"other-boot:{ticks}")):
        assert not stranger.is_alive()
        assert processes.family(stranger) == []
        processes.stop([stranger], grace=0)
        processes.kill(stranger)
    assert parent.is_alive()


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    assert processes.identify(child.pid) is None
    child.wait()


def test_kill_ends_all_that_was_started_in_any_session(parent: Process) -> None:
    family = processes.family(parent)
    assert len(family) == 3
    processes.kill(parent)
    assert not any(member.is_alive() for member in family)


def test_stop_ends_children_that_outlive_the_leader(parent: Process) -> None:
    family = processes.family(parent)
    assert processes.stop([parent], grace=5) == []
    assert not any(member.is_alive() for member in family)


def test_stop_names_what_had_to_be_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    log = tmp_path / "log"
    child = processes.launch([sys.executable, "-c", deaf], log=log, folder=tmp_path, environment=os.environ)
    wait.until(log.read_text)
    process = processes.identify(child.pid)
    assert process is not None
    assert processes.stop([process], grace=0.1) == [process]
    assert child.wait() == -signal.SIGKILL


def test_stop_reaches_a_frozen_process(parent: Process) -> None:
    os.kill(parent.pid, signal.SIGSTOP)
    assert processes.stop([parent], grace=5) == []


def test_what_a_killed_supervisor_left_is_found_and_a_shell_there_is_left_alone(
    parent: Process, tmp_path: Path
) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as bystander:
        try:
            os.kill(parent.pid, signal.SIGKILL)
            wait.until(lambda: not parent.is_alive())
            left = processes.strays(tmp_path)
            assert len(left) == 2
            processes.kill_all(left)
            assert processes.strays(tmp_path) == []
            assert bystander.poll() is None
        finally:
            bystander.kill()

"""The supervisor with real processes: restarts, giving up, graceful ends."""

import os
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lyttle_ops.clock import SystemClock
from lyttle_ops.node.supervisor import MOST_RESTARTS, Child, Supervisor
from tests.support.wait import until


class FastClock(SystemClock):
    """Time that runs a hundred times faster, so that pauses cost nothing."""

    def monotonic(self) -> float:
        return super().monotonic() * 100


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor(FastClock())
    yield made
    made.stop(grace=200)


def child(code: str, **options: object) -> Child:
    return Child("child", lambda: [sys.executable, "-c", code], lambda: os.environ, **options)


def test_a_child_that_dies_is_restarted(supervisor: Supervisor) -> None:
    each = child("import time; time.sleep(60)")
    supervisor.add(each)
    supervisor.tick()
    first = each.pid
    assert first
    os.kill(first, signal.SIGKILL)
    until(lambda: supervisor.tick() is None and each.pid not in (None, first))


def test_a_child_that_keeps_dying_is_given_up_with_the_reason(supervisor: Supervisor) -> None:
    each = child("raise SystemExit(3)")
    supervisor.add(each)
    until(lambda: supervisor.tick() is None and each.given_up, timeout=30)
    assert each.given_up == f"child ended {MOST_RESTARTS + 1} times within 5 minutes, last with exit code 3"


def test_its_error_output_is_read_line_by_line(supervisor: Supervisor) -> None:
    lines: list[str] = []
    supervisor.add(child("import sys,time; print('a\\nb', file=sys.stderr); time.sleep(60)", read_line=lines.append))
    supervisor.tick()
    until(lambda: lines == ["a", "b"])


def test_stop_lets_a_child_finish(supervisor: Supervisor) -> None:
    lines: list[str] = []
    code = (
        "import signal,sys,time\n"
        "def end(*_):\n print('finished', file=sys.stderr); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', file=sys.stderr); time.sleep(60)\n"
    )
    each = child(code, read_line=lines.append)
    supervisor.add(each)
    supervisor.tick()
    until(lambda: "up" in lines)
    supervisor.stop(grace=1000)
    until(lambda: lines == ["up", "finished"])
    assert each.process
    assert each.process.returncode == 0


def test_a_program_that_is_missing_is_given_up_at_once(supervisor: Supervisor) -> None:
    def command() -> list[str]:
        raise FileNotFoundError("no such program")

    each = Child("child", command, dict)
    supervisor.add(each)
    supervisor.tick()
    assert each.given_up
    assert "no such program" in each.given_up


def test_a_start_that_fails_for_a_moment_is_tried_again(supervisor: Supervisor) -> None:
    """As fork does on a machine that is short of memory or processes."""
    errors: list[Exception] = [BlockingIOError("fork"), OSError("memory")]

    def prepare() -> None:
        if errors:
            raise errors.pop()

    each = child("import time; time.sleep(60)", prepare=prepare)
    supervisor.add(each)
    until(lambda: supervisor.tick() is None and each.running)
    assert (errors, len(each.exits), each.given_up) == ([], 2, None)


def test_a_start_that_always_fails_is_given_up_with_the_reason(supervisor: Supervisor) -> None:
    def prepare() -> None:
        raise OSError("no memory")

    each = child("", prepare=prepare)
    supervisor.add(each)
    until(lambda: supervisor.tick() is None and each.given_up, timeout=30)
    assert each.given_up == f"child ended {MOST_RESTARTS + 1} times within 5 minutes, last with the error: no memory"


def test_a_child_may_end_while_another_thread_asks_whether_it_runs() -> None:
    class Ended:
        def poll(self) -> None:
            each.process = None  # what the main thread does between two looks of another

    each = child("")
    each.process = Ended()
    each.process.pid = 7
    assert each.pid == 7


def test_a_child_that_must_not_be_given_up_is_tried_for_ever_with_pauses_up_to_a_minute() -> None:
    class Clock(SystemClock):
        at = 0.0

        def monotonic(self) -> float:
            return self.at

    starts: list[float] = []

    def prepare() -> None:
        starts.append(clock.at)
        raise FileNotFoundError("no such program")

    clock = Clock()
    supervisor = Supervisor(clock)
    each = child("", prepare=prepare, may_be_given_up=lambda: False)
    supervisor.add(each)
    while clock.at < 3600:
        supervisor.tick()
        clock.at += 0.5
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert each.given_up is None
    assert max(pauses) == 60
    assert len(starts) < 150


def test_a_child_that_does_not_end_when_it_is_renewed_is_killed_with_what_it_started(supervisor: Supervisor) -> None:
    lines: list[str] = []
    code = (
        "import os,signal,sys,time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "worker = os.fork()\n"
        "if worker: print(worker, file=sys.stderr)\n"
        "time.sleep(60)\n"
    )
    each = child(code, read_line=lines.append)
    supervisor.add(each)
    until(lambda: supervisor.tick() is None and lines)
    first, worker = each.pid, int(lines[0])
    supervisor.renew("child")
    supervisor.renew("child")  # again and again changes nothing
    until(lambda: supervisor.tick() is None and each.pid not in (None, first))
    until(lambda: not Path(f"/proc/{worker}").exists() or "\nState:\tZ" in Path(f"/proc/{worker}/status").read_text())
    assert each.end_by is None

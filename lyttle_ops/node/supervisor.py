"""The supervisor: starts NGINX and the API as child processes, watches them, ends them in order.

Children are started from the main thread only: they ask the kernel to end them with their parent
(PR_SET_PDEATHSIG, prctl(2)), and that means the thread that forked them.
"""

import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from lyttle_ops.clock import Clock

log = logging.getLogger(__name__)

MOST_RESTARTS = 5
RESTART_WINDOW = 300.0  # seconds
RENEWAL = 30.0  # seconds a child that is renewed has to end; gunicorn gives requests in flight 20
_PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 15.0, 30.0, 60.0)  # before the 1st, 2nd … restart in the window


@dataclass
class Child:
    """A program to keep running."""

    name: str
    command: Callable[[], list[str]]
    environment: Callable[[], Mapping[str, str]]
    descriptors: Callable[[], Sequence[int]] = tuple  # open files that it inherits under the same numbers
    prepare: Callable[[], None] = lambda: None  # before each start
    read_line: Callable[[str], None] | None = None  # gets each line of its standard error
    graceful: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[str] | None = None
    exits: deque[float] = field(default_factory=deque)
    start_at: float = 0.0
    started_at: float = 0.0
    end_by: float | None = None  # told to end, by force from then on
    given_up: str | None = None  # why it is not restarted any more
    may_be_given_up: Callable[[], bool] = lambda: True  # asked when that would be; else it is tried for ever

    @property
    def running(self) -> bool:
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        process = self.process  # read once: the main thread sets it to None, others ask
        return process.pid if process is not None and process.poll() is None else None


class Supervisor:
    """Keeps children running. `tick`, `renew` and `stop` belong to the main thread, `add` may come from any."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._children: dict[str, Child] = {}

    def add(self, child: Child) -> None:
        """Start `child` at the next tick and keep it running; nothing happens when there is one of that name."""
        with self._mutex:
            self._children.setdefault(child.name, child)

    def child(self, name: str) -> Child | None:
        with self._mutex:
            return self._children.get(name)

    def tick(self) -> None:
        """Start what should run and does not; call it a few times a second."""
        with self._mutex:
            children = list(self._children.values())
        for child in children:
            if child.running:
                self._end_by_force(child)
                continue
            if child.given_up:
                continue
            if child.process is not None:
                self._note_exit(child)
            elif self._clock.monotonic() >= child.start_at:
                self._start(child)

    def renew(self, name: str) -> None:
        """End a child gracefully, after RENEWAL by force; a tick starts it anew, with what its environment is then."""
        child = self.child(name)
        if child is not None and child.process is not None and child.running and child.end_by is None:
            child.end_by = self._clock.monotonic() + RENEWAL
            child.process.send_signal(child.graceful)

    def stop(self, grace: float) -> None:
        """End all children gracefully, all at once; after `grace` seconds by force. In-flight requests finish."""
        with self._mutex:
            running = [child for child in self._children.values() if child.running]
            self._children.clear()
        deadline = self._clock.monotonic() + grace
        for child in running:
            assert child.process is not None
            child.process.send_signal(child.graceful)
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(0.1, deadline - self._clock.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s did not end within %.0f s; it is killed", child.name, grace)
                child.process.send_signal(signal.SIGTERM)
                try:
                    child.process.wait(2)
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()

    def _start(self, child: Child) -> None:
        try:
            child.prepare()
            child.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *child.command()],
                env=dict(child.environment()),
                pass_fds=child.descriptors(),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE if child.read_line else None,
                text=True,
                errors="replace",
                start_new_session=True,  # a Ctrl-C on the terminal is the supervisor's to handle
            )
        except Exception as exc:
            log.exception("%s cannot be started", child.name)
            # What is not there does not come by waiting; a machine short of memory or processes may have some soon.
            if isinstance(exc, FileNotFoundError | PermissionError) and child.may_be_given_up():
                child.given_up = f"{child.name} cannot be started: {exc}"
            else:
                self._count_exit(child, f"the error: {exc}")
            return
        child.started_at, child.end_by = self._clock.monotonic(), None
        log.info("%s started, pid %d", child.name, child.process.pid)
        if child.read_line and child.process.stderr:
            threading.Thread(
                target=_read_lines, args=(child.process.stderr, child.read_line), name=f"{child.name}-log", daemon=True
            ).start()

    def _end_by_force(self, child: Child) -> None:
        if child.process is not None and child.end_by is not None and self._clock.monotonic() > child.end_by:
            log.warning("%s did not end within %.0f s; it is killed", child.name, RENEWAL)
            child.end_by = None
            # Its session is its own: with what it started, which would keep its sockets.
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)

    def _note_exit(self, child: Child) -> None:
        assert child.process is not None
        code = child.process.returncode
        child.process = None
        self._count_exit(child, f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")

    def _count_exit(self, child: Child, reason: str) -> None:
        """Restart it after a pause that grows, or give it up."""
        now = self._clock.monotonic()
        while child.exits and now - child.exits[0] > RESTART_WINDOW:
            child.exits.popleft()
        child.exits.append(now)
        if len(child.exits) > MOST_RESTARTS and child.may_be_given_up():
            child.given_up = f"{child.name} ended {len(child.exits)} times within 5 minutes, last with {reason}"
            log.error("%s; it is not restarted any more", child.given_up)
            return
        pause = _PAUSES[min(len(child.exits), len(_PAUSES)) - 1]
        child.start_at = now + pause
        log.warning("%s ended with %s; restart %d in %.1f s", child.name, reason, len(child.exits), pause)


def _read_lines(stream: IO[str], read_line: Callable[[str], None]) -> None:
    with stream:
        for line in stream:
            read_line(line.rstrip("\n"))

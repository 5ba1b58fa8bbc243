"""Named locks for the whole cluster: PostgreSQL session advisory locks (manual 13.3.5).

All locks of a process live on one dedicated connection, never on a pooled one (a pool keeps or loses them).
A lock is taken once and never re-taken to check it, because advisory locks stack. PostgreSQL frees them when
the session ends, so a dead node blocks nobody; a frozen one is cut off by idle_session_timeout.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from lyttle_ops.cluster.session import Session, SessionLost, StatementFailed, lock_key
from lyttle_ops.db import Database
from lyttle_ops.errors import LyttleOpsError

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_TIMEOUT = 5.0  # seconds for one statement on the lock session
PING_INTERVAL = 10.0  # seconds between signs of life while something is held
SERVER_PATIENCE = "45s"  # idle_session_timeout: when a frozen process loses its locks
IDLE_CLOSE = 30.0  # seconds after which a session that holds nothing is given back; below SERVER_PATIENCE
DEFAULT_TIMEOUT = 30.0  # seconds with_lock tries for
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0

_attempts = Counter("lyttle_lock_attempts_total", "Tries for a cluster lock", ["kind", "outcome"])
_waits = Histogram(
    "lyttle_lock_wait_seconds",
    "Time until a lock was acquired or given up",
    ["kind"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 30),
)
_held = Gauge("lyttle_locks_held", "Cluster locks this process holds")
_lost = Counter("lyttle_locks_lost_total", "Locks whose session ended while they were held", ["kind"])


class LockNotAcquired(LyttleOpsError):
    """Another holder kept the lock for the whole time."""


class LockLost(LyttleOpsError):
    """The session that held the lock ended; somebody else may hold it now."""


def _kind(name: str) -> str:
    # 'cert:issue:<hash>' → 'cert:issue': a metric label must not grow with the data.
    return ":".join(name.split(":")[:2])


class Lock:
    """A lock that was acquired. A context manager that releases; leaving it raises LockLost if it was lost."""

    def __init__(self, locks: "Locks", name: str, session: Session) -> None:
        self.name = name
        self._locks = locks
        self._session = session
        self._released = False

    @property
    def held(self) -> bool:
        """Whether the lock is still ours, without a statement."""
        return self._locks._is_held(self)

    def ensure_held(self) -> None:
        """Raises LockLost when it is not ours any more."""
        if not self.held:
            raise LockLost(f"Lock {self.name} was lost: its session to PostgreSQL ended")

    def release(self) -> bool:
        """Give it back; False when it had been lost or was given back before."""
        released = self._locks._release(self)
        self._released = self._released or released
        return released

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if not self.release() and not self._released and kind is None:
            raise LockLost(f"Lock {self.name} was lost while its work was done")


class Locks:
    """The locks of one process. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mutex = threading.Lock()
        self._session: Session | None = None
        self._holding: dict[str, Lock] = {}
        self._last_use = 0.0
        self._keeper: threading.Thread | None = None
        self._closing = threading.Event()

    def try_acquire_lock(self, name: str) -> Lock | None:
        """The lock, or None when somebody (another node, or a thread of this one) has it. Does not block.

        Raises DatabaseError when PostgreSQL cannot be asked.
        """
        started = time.monotonic()
        lock = self._try(name)
        _attempts.labels(_kind(name), "acquired" if lock else "busy").inc()
        if lock:
            _waits.labels(_kind(name)).observe(time.monotonic() - started)
        return lock

    @contextmanager
    def lock(self, name: str, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Lock]:
        """Hold the lock for a block. Raises LockNotAcquired after `timeout` seconds of tries."""
        with self._acquire(name, timeout) as lock:
            yield lock

    def with_lock(self, name: str, body: Callable[[Lock], T], timeout: float = DEFAULT_TIMEOUT) -> T:
        """Run `body(lock)` under the lock and return what it returns; the lock is released in any case.

        Raises LockNotAcquired after `timeout` seconds of tries, so that it can never be taken for a result,
        and LockLost when the session ended while the body ran.
        """
        with self._acquire(name, timeout) as lock:
            return body(lock)

    def close(self) -> None:
        """Release everything and end the session."""
        self._closing.set()
        with self._mutex:
            self._drop_session()
            keeper = self._keeper
        if keeper is not None:
            keeper.join(timeout=ANSWER_TIMEOUT)

    def _acquire(self, name: str, timeout: float) -> Lock:
        started = time.monotonic()
        pause = _FIRST_PAUSE
        while True:
            lock = self._try(name)
            waited = time.monotonic() - started
            if lock or waited >= timeout:
                break
            time.sleep(min(pause * random.uniform(0.5, 1.5), max(0.0, timeout - waited)))  # noqa: S311 - spreads retries
            pause = min(pause * 2, _LONGEST_PAUSE)
        _waits.labels(_kind(name)).observe(waited)
        _attempts.labels(_kind(name), "acquired" if lock else "timeout").inc()
        if lock is None:
            log.info("Lock %s not acquired within %.1f s", name, timeout)
            raise LockNotAcquired(f"Lock {name} was held by somebody else for {timeout:.1f} s")
        return lock

    def _try(self, name: str) -> Lock | None:
        with self._mutex:
            if self._session is not None and not self._session.is_open():
                self._drop_session()
            if name in self._holding:
                return None
            try:
                session = self._open_session()
                taken = self._ask(session, "SELECT pg_try_advisory_lock($1)", name)
            except SessionLost:
                # It died while it was idle: a fresh one decides. What the old one took, PostgreSQL freed.
                self._drop_session()
                session = self._open_session()
                taken = self._ask(session, "SELECT pg_try_advisory_lock($1)", name)
            if not taken:
                return None
            lock = Lock(self, name, session)
            self._holding[name] = lock
            _held.set(len(self._holding))
            self._last_use = time.monotonic()
            log.debug("Lock %s acquired", name)
            return lock

    def _release(self, lock: Lock) -> bool:
        with self._mutex:
            if self._holding.get(lock.name) is not lock:
                return False
            del self._holding[lock.name]
            _held.set(len(self._holding))
            self._last_use = time.monotonic()
            try:
                released = self._ask(lock._session, "SELECT pg_advisory_unlock($1)", lock.name)
            except (SessionLost, StatementFailed):
                released = False
                self._drop_session()  # with the session PostgreSQL frees what it holds
            if not released:
                _lost.labels(_kind(lock.name)).inc()
                log.warning("Lock %s was lost before it was released", lock.name)
            else:
                log.debug("Lock %s released", lock.name)
            return released

    def _is_held(self, lock: Lock) -> bool:
        with self._mutex:
            if self._holding.get(lock.name) is not lock:
                return False
            if lock._session is self._session and lock._session.is_open():
                return True
            self._drop_session()
            return False

    def _ask(self, session: Session, sql: str, name: str) -> bool:
        return session.query(sql, lock_key(name), timeout=ANSWER_TIMEOUT) == [("t",)]

    def _open_session(self) -> Session:
        if self._session is None:
            self._session = Session(
                self._database,
                f"{self._database.name}/locks"[:63],
                {
                    "idle_session_timeout": SERVER_PATIENCE,
                    "client_connection_check_interval": "1s",
                    "statement_timeout": f"{ANSWER_TIMEOUT:.0f}s",
                },
            )
            self._last_use = time.monotonic()
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._keep, name="locks-keeper", daemon=True)
                self._keeper.start()
        return self._session

    def _drop_session(self) -> None:
        for name in self._holding:
            _lost.labels(_kind(name)).inc()
            log.warning("Lock %s was lost: its session to PostgreSQL ended", name)
        # Their holders find out: release(), held and leaving the block all look the lock up here.
        self._holding.clear()
        _held.set(0)
        if self._session is not None:
            self._session.close()
            self._session = None

    def _keep(self) -> None:
        """Show PostgreSQL that holders live; give the session back when nobody has needed it for a while."""
        while not self._closing.wait(PING_INTERVAL):
            with self._mutex:
                if self._session is None:
                    return
                if not self._holding:
                    if time.monotonic() - self._last_use > IDLE_CLOSE:
                        self._drop_session()
                        return
                    continue
                try:
                    self._session.query("SELECT 1", timeout=ANSWER_TIMEOUT)
                except (SessionLost, StatementFailed):
                    self._drop_session()

"""A PostgreSQL session that holds advisory locks, driven through libpq with a deadline on every answer.

psycopg's blocking calls wait for as long as the server is silent; a node that has to know within seconds
whether it still leads cannot. So statements here are sent asynchronously (PostgreSQL manual, 34.4) and the
socket is watched together with an event that ends the wait.
"""

import os
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256

import psycopg
from psycopg import pq

from lyttle_ops.db import Database, DatabaseError
from lyttle_ops.db.connection import is_open

LOCK_NOT_AVAILABLE = "55P03"


class SessionLost(DatabaseError):
    """The session to PostgreSQL ended or stopped answering; what it held is gone."""


class StatementFailed(DatabaseError):
    """PostgreSQL refused a statement of the session."""

    def __init__(self, message: str, sqlstate: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Interrupted(Exception):
    """A wait was ended by its waker."""


class Waker:
    """An event that select() can wait on beside a socket (eventfd(2))."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def set(self) -> None:
        os.eventfd_write(self._fd, 1)

    def clear(self) -> bool:
        """Reset; True when it was set."""
        try:
            return bool(os.eventfd_read(self._fd))
        except BlockingIOError:
            return False

    def wait(self) -> None:
        """Wait until it is set, and reset it."""
        _poll(((self._fd, select.POLLIN),), None)
        self.clear()

    def close(self) -> None:
        os.close(self._fd)


def lock_key(name: str) -> int:
    """The advisory lock key of a name: the first 8 bytes of its SHA-256, as PostgreSQL's signed bigint."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big", signed=True)


class Session:
    """One dedicated connection. Not thread-safe: its owner serialises.

    `guards` are server settings (GUC = value) sent with the start-up packet.
    """

    def __init__(self, database: Database, name: str, guards: dict[str, str]) -> None:
        options = " ".join(f"-c {setting}={value}" for setting, value in guards.items())
        self._connection = database.connect(name=name, options=options)
        self._pgconn = self._connection.pgconn

    def is_open(self) -> bool:
        """Whether the session lives, by a look at the socket and no statement."""
        return is_open(self._connection)

    def query(
        self, sql: str, *parameters: object, timeout: float, waker: Waker | None = None
    ) -> list[tuple[str | None, ...]]:
        """Run one statement ($1 … parameters) and return its rows as text.

        Raises StatementFailed with PostgreSQL's SQLSTATE, SessionLost on EOF or when no answer came within
        `timeout` seconds (the session is closed then), Interrupted when `waker` was set first (the statement
        is still running then: close the session).
        """
        encoded = [None if p is None else str(p).encode() for p in parameters]
        deadline = time.monotonic() + timeout
        try:
            self._pgconn.send_query_params(sql.encode(), encoded)
            while self._pgconn.flush():
                self._wait(deadline, None, write=True)
            results = []
            while True:
                while self._pgconn.is_busy():
                    self._wait(deadline, waker)
                    self._pgconn.consume_input()
                result = self._pgconn.get_result()
                if result is None:
                    break
                results.append(result)
        except psycopg.Error as exc:
            self._connection.close()
            raise SessionLost(f"the session ended: {str(exc).strip()}") from exc
        return _rows(results)

    def wait_for_end(self, timeout: float, waker: Waker) -> None:
        """Watch the idle session for `timeout` seconds. Raises SessionLost on EOF, returns early when woken."""
        ready = _poll(((self._pgconn.socket, select.POLLIN), (waker.fileno(), select.POLLIN)), timeout)
        if self._pgconn.socket in ready and not self.is_open():
            raise SessionLost("PostgreSQL ended the session")

    def close(self) -> None:
        """End the session; a statement that still waits for a lock is cancelled first."""
        if self._pgconn.status == pq.ConnStatus.OK and self._pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            # Without it the backend would stay in the queue until it next looks at its client.
            # With the server away client_connection_check_interval ends the wait there.
            with suppress(psycopg.Error):
                self._connection.cancel_safe(timeout=2)
        self._connection.close()

    def _wait(self, deadline: float, waker: Waker | None, write: bool = False) -> None:
        socket = self._pgconn.socket
        events = select.POLLIN | (select.POLLOUT if write else 0)
        watched = [(socket, events)] if waker is None else [(socket, events), (waker.fileno(), select.POLLIN)]
        ready = _poll(watched, max(0.0, deadline - time.monotonic()))
        if socket in ready:
            return
        if ready:
            raise Interrupted
        self._connection.close()  # no cancel request: who does not answer this will not answer that
        raise SessionLost("PostgreSQL did not answer in time")


def _poll(watched: Sequence[tuple[int, int]], timeout: float | None) -> set[int]:
    """The descriptors that are ready; poll(2), since select(2) knows none above 1023."""
    poll = select.poll()
    for descriptor, events in watched:
        poll.register(descriptor, events)
    return {descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1000)}


def _rows(results: Sequence[pq.abc.PGresult]) -> list[tuple[str | None, ...]]:
    rows: list[tuple[str | None, ...]] = []
    for result in results:
        if result.status == pq.ExecStatus.TUPLES_OK:
            for row in range(result.ntuples):
                values = (result.get_value(row, column) for column in range(result.nfields))
                rows.append(tuple(None if value is None else value.decode() for value in values))
        elif result.status != pq.ExecStatus.COMMAND_OK:
            state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
            message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
            raise StatementFailed(message.decode(errors="replace"), state.decode())
    return rows

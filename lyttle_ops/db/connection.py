"""Connections: a small pool for statements, and dedicated ones for sessions that hold something.

Every connection is in autocommit mode, returns rows as dicts, and carries time-outs on both sides: the
client's TCP user time-out and keepalives, the server's idle-in-transaction time-out, so that a frozen node
never keeps a row lock for longer than that.
"""

import logging
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import psycopg
import psycopg_pool
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row

from lyttle_ops.db.errors import DatabaseMisconfigured, translated

Connection = psycopg.Connection[DictRow]
T = TypeVar("T")

CONNECT_TIMEOUT = 5  # seconds
_NETWORK = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
ANSWER_TIMEOUT = 12.0  # seconds until a pooled statement that nobody answers is given up; above statement_timeout
# Sent with the start-up packet, so that they cost no statement (PostgreSQL manual, 55.2.1).
_SERVER = "-c idle_in_transaction_session_timeout=5s -c statement_timeout=10s -c timezone=UTC"

# What it logs reaches whoever asks for a connection as an error; without a log of its own a command prints it once.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())


class _Bounded(psycopg.Connection[DictRow]):
    """A connection that does not wait for ever on a server that accepts and never answers (a frozen machine or
    process, whose kernel goes on acknowledging)."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        options = {} if timeout is None else {"timeout": timeout}  # psycopg before 3.3 has no such parameter
        return super().wait(self._until(gen, time.monotonic() + ANSWER_TIMEOUT), interval, **options)

    def _until(self, gen: PQGen[T], deadline: float) -> PQGen[T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {ANSWER_TIMEOUT:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return cast(T, end.value)


def is_open(connection: psycopg.Connection[Any]) -> bool:
    """Whether the session is still there, without a statement: looks for EOF on the socket."""
    pgconn = connection.pgconn
    if pgconn.status != pq.ConnStatus.OK:
        return False
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    if not poll.poll(0):
        return True
    try:
        pgconn.consume_input()
        # Something came that nobody asked for. A changed parameter is fine; after a FATAL the end follows at once,
        # but perhaps not in the same instant.
        return pgconn.status == pq.ConnStatus.OK and not poll.poll(100)
    except psycopg.Error:
        return False


class Database:
    """One PostgreSQL database as one process sees it.

    `url` is a libpq URL or key/value string; it never appears in an error. `name` goes into
    `application_name`, where pg_stat_activity shows who holds what. `size` is the most pooled connections
    (0: none, only dedicated ones).
    Raises DatabaseMisconfigured when the URL cannot be parsed.
    """

    def __init__(self, url: str, name: str, size: int = 4) -> None:
        try:
            parameters = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            # libpq's own message quotes the string, password included.
            raise DatabaseMisconfigured(
                "the database URL cannot be parsed; accepted: postgresql://user:password@host:5432/name"
            ) from None
        self.name = name
        password = parameters.get("password")
        self._secrets = (str(password),) if password else ()
        self._parameters: dict[str, Any] = {**_NETWORK, **parameters, "application_name": name}
        # After the user's own, so that the time-outs that others rely on cannot be lost.
        self._own_options = str(parameters.get("options") or "")
        self._parameters["options"] = f"{self._own_options} {_SERVER}".strip()
        self._pool: psycopg_pool.ConnectionPool[_Bounded] | None = None
        self._refused: str | None = None  # why the pool's last try to connect failed; the pool itself only logs it
        if size:
            self._pool = psycopg_pool.ConnectionPool(
                connection_class=self._remembering(),
                kwargs={**self._parameters, "autocommit": True, "row_factory": dict_row},
                min_size=0,
                max_size=size,
                timeout=CONNECT_TIMEOUT,
                max_idle=120,
                # Give up and start anew: its growing pauses would keep a node away long after PostgreSQL is back.
                reconnect_timeout=2.0,
                check=_check,
                open=True,
                name=name,
            )

    @property
    def address(self) -> str:
        """Where it is, for people: host:port/name, without the user's password."""
        p = self._parameters
        return f"{p.get('host', 'localhost')}:{p.get('port', 5432)}/{p.get('dbname', '')}"

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A pooled connection in autocommit mode. Raises the errors of lyttle_ops.db.errors."""
        if self._pool is None:
            raise RuntimeError("this Database has no pool")
        with translated(self._secrets):
            try:
                with self._pool.connection() as connection:
                    yield connection
            except psycopg_pool.PoolTimeout as exc:
                raise psycopg_pool.PoolTimeout(f"{exc}: {self._refused}" if self._refused else str(exc)) from exc

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A pooled connection inside one transaction, committed at the end, rolled back on an error."""
        with self.connection() as connection, connection.transaction():
            yield connection

    def connect(self, name: str | None = None, bounded: bool = True, **parameters: Any) -> Connection:
        """A dedicated connection that the caller closes; for locks, LISTEN and migrations.

        `bounded`: a statement that is not answered in time fails; a migration may take longer.
        """
        merged = {**self._parameters, **parameters}
        if "options" in parameters:
            merged["options"] = f"{self._own_options} {parameters['options']}".strip()
        if name:
            merged["application_name"] = name
        kind: type[Connection] = _Bounded if bounded else psycopg.Connection
        with translated(self._secrets):
            return kind.connect(**merged, autocommit=True, row_factory=dict_row)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate driver errors raised by work on a connection of `connect`."""
        with translated(self._secrets):
            yield

    def _remembering(self) -> type[_Bounded]:
        """Connections of the pool, which keep in `_refused` why the last one could not be made."""
        database = self

        class Remembering(_Bounded):
            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                try:
                    connection = super().connect(*args, **kwargs)
                except psycopg.Error as exc:
                    database._refused = str(exc).strip()
                    raise
                database._refused = None
                return connection

        return Remembering

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def _check(connection: psycopg.Connection[Any]) -> None:
    # The pool's own check is a statement on every checkout; a look at the socket finds the same.
    if not is_open(connection):
        raise psycopg.OperationalError("the server ended the session")

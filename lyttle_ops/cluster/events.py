"""Events: one LISTEN connection a node. A notification carries an id at most; it only makes things quicker.

Whoever acts on an event reads the truth from the tables. A lost notification costs delay and nothing else: the
heartbeat's answer carries the same news, and each new connection counts as an event of every channel.
"""

import logging
import threading
from collections.abc import Callable, Mapping

import psycopg
from psycopg import sql

from lyttle_ops.db import Database, DatabaseError

log = logging.getLogger(__name__)

STATE_CHANNEL = "lyttle_state"
_LONGEST_PAUSE = 5.0  # seconds between tries to connect


class Events:
    """Listens on the channels of `handlers` and calls handler(payload); payload is "" after a (re)connect.

    Handlers run on the listening thread and must return at once.
    """

    def __init__(self, database: Database, handlers: Mapping[str, Callable[[str], None]]) -> None:
        self._database = database
        self._handlers = handlers
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether the listening session lives: the cheapest sign that PostgreSQL is there."""
        return self._connected.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join(timeout=5)

    def _run(self) -> None:
        pause = 0.2
        while not self._stopping.is_set():
            try:
                self._listen()
                pause = 0.2
            except (DatabaseError, psycopg.Error) as exc:
                if self._connected.is_set():
                    log.warning("Events: lost the connection to PostgreSQL: %s", exc)
                    pause = 0.2
            self._connected.clear()
            self._stopping.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _listen(self) -> None:
        name = f"{self._database.name}/events"[:63]
        with self._database.connect(
            name=name, options="-c idle_session_timeout=0 -c statement_timeout=30s"
        ) as connection:
            for channel in self._handlers:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            self._connected.set()
            for handler in self._handlers.values():
                handler("")
            while not self._stopping.is_set():
                # The time-out only lets the loop see that it should stop; nothing is sent.
                for notification in connection.notifies(timeout=0.5):
                    self._handlers[notification.channel](notification.payload)
                    if self._stopping.is_set():
                        return

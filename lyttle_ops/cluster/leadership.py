"""Leadership: one node at a time acts for the cluster. The protocol, before the code.

States of a node
    follower   asks for nothing; its heartbeat tells it whether somebody leads and somebody stands by.
    standby    holds the standby lock and waits *inside* pg_advisory_lock(leader), so it wakes within
               milliseconds when the leader's session ends. One node only: a waiting SELECT holds a snapshot
               (VACUUM, CREATE INDEX CONCURRENTLY) and each wait that times out is a line in PostgreSQL's log.
               So it waits in slices below a minute.
    leader     holds the leader lock on a session of its own, pings it every second.

How a standby comes
    A starting node tries at once. Later the leader's ping tells it whether a standby is there; if not, the
    leader invites three active instances by NOTIFY (three, because one may have just died; no more, so that a
    thousand nodes are no herd) and others two seconds later if none stepped up. A follower whose heartbeat says
    that nobody leads or stands by tries by itself: that is what ends the case of leader and standby dying together
    (within 30 s).

How a term begins
    The winner increments leadership.term on the session that holds the lock, then frees the standby lock.
    The trust window opens at the start of that statement.

How a term ends
    - clean: SIGTERM, or its own NGINX cannot serve: released_at is written, the lock freed, at once.
    - the socket shows EOF (pg_terminate_backend, database restart): at once; a new holder can have the lock
      2 ms later.
    - a ping fails or is not answered within 2 s: at once.
    - nobody could say (the process was frozen, the network is cut): 3.5 s after the *start* of the last ping
      that succeeded, `is_leader()` turns false by itself. It is a comparison on a local clock that also
      counts suspended time, with no I/O.
    PostgreSQL itself frees the lock of a leader that is silent for 5 s (idle_session_timeout, PostgreSQL >=
    14). That is the real guarantee: the kernel of a frozen process and any TCP proxy go on answering
    keepalives. 3.5 s < 5 s, so an old leader has stopped trusting itself before a new one can exist.
    A slow success never extends trust: the window counts from the ping's start.

What a leader may do
    - Writes go through `transaction()`: the term row is locked FOR SHARE in the same transaction, so a write of
      an old term fails (NotLeader) and a successor's increment waits for writes under way (at most
      idle_in_transaction_session_timeout = 5 s when the old leader froze in the middle).
    - Effects that PostgreSQL cannot fence (orders at a CA, a shared file system, alerts) start one trust window
      after winning, unless the predecessor recorded a clean release: see `settled`.

Bounds: takeover after kill -9 with a standby in place: milliseconds. After SIGSTOP: 5 s + the last ping.
Without a standby: 30 s (heartbeat). No snapshot older than a minute; about one log line a minute.
"""

import enum
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prometheus_client import Counter, Gauge, Histogram

from lyttle_ops.clock import Clock
from lyttle_ops.cluster.session import (
    LOCK_NOT_AVAILABLE,
    Interrupted,
    Session,
    SessionLost,
    StatementFailed,
    Waker,
    lock_key,
)
from lyttle_ops.db import Database, DatabaseError, load_queries
from lyttle_ops.db.connection import Connection
from lyttle_ops.errors import LyttleOpsError

log = logging.getLogger(__name__)
queries = load_queries("lyttle_ops.cluster")

LEADER_LOCK = "leader"
STANDBY_LOCK = "leader:standby"
CHANNEL = "lyttle_leadership"

PING_INTERVAL = 1.0
PING_TIMEOUT = 2.0
TRUST_WINDOW = 3.5
SERVER_PATIENCE = "5s"
WAIT_SLICE = 55  # seconds a standby waits at a stretch
ANSWER_TIMEOUT = 10.0
INVITE_FIRST, INVITE_LONGEST = 2.0, 30.0
RETRY_PAUSE = 1.0

_is_leader = Gauge("lyttle_leader", "1 while this instance leads")
_term = Gauge("lyttle_leadership_term", "Term this instance leads or led last")
_changes = Counter("lyttle_leadership_changes_total", "Terms begun and ended here", ["event"])
_pings = Histogram(
    "lyttle_leader_ping_seconds",
    "Round trip of the leader's ping",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.05, 0.5, 2),
)

_PING = """
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid::bigint = $1 AND objid::bigint = $2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)"""
_INVITE = f"""
SELECT pg_notify('{CHANNEL}', id::text) FROM (
    SELECT id FROM instances
    WHERE id <> $1 AND left_at IS NULL AND last_heartbeat_at > now() - interval '2 minutes'
    ORDER BY random() LIMIT 3
) candidate"""  # noqa: S608 - the only value pasted is a constant
_PROMOTE = """
UPDATE leadership l
SET term = l.term + 1, instance_id = $1, node_name = $2, acquired_at = now(), released_at = NULL
FROM (SELECT term, released_at FROM leadership FOR UPDATE) old
RETURNING l.term, old.term = 0 OR old.released_at IS NOT NULL"""
_RELEASE = "UPDATE leadership SET released_at = now() WHERE term = $1 AND instance_id = $2 RETURNING term"


class NotLeader(LyttleOpsError):
    """This node does not lead (any more); nothing was written."""


class State(enum.Enum):
    FOLLOWER = "follower"
    STANDBY = "standby"
    LEADER = "leader"


def lock_identity(name: str) -> tuple[int, int]:
    """(classid, objid) under which pg_locks shows the lock `name` (manual 54.12: a bigint key is split)."""
    key = lock_key(name) & 0xFFFFFFFFFFFFFFFF
    return key >> 32, key & 0xFFFFFFFF


class Leadership:
    """This instance's part in the protocol above; runs a thread of its own between `start` and `stop`.

    `eligible` says whether this node may lead (its NGINX serves); it is asked every second and must not block.
    `on_elected(term)` and `on_lost()` are called on the leadership thread and must return at once.
    """

    def __init__(
        self,
        database: Database,
        instance_id: UUID,
        node_name: str,
        clock: Clock,
        *,
        eligible: Callable[[], bool] = lambda: True,
        on_elected: Callable[[int], None] = lambda term: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._instance_id = instance_id
        self._node_name = node_name
        self._clock = clock
        self._eligible = eligible
        self._on_elected = on_elected
        self._on_lost = on_lost
        self._session_name = f"lyttle/{str(instance_id)[:8]}/lead/{node_name}"[:63]
        self._place_free = Waker()  # a follower may try
        self._interrupt = Waker()  # a standby or leader must look up
        self._stopping = threading.Event()
        self._resigning = threading.Event()
        self._thread: threading.Thread | None = None
        self._state = State.FOLLOWER
        self._term = 0
        self._trusted_until = float("-inf")
        self._settled_at = float("inf")

    # -- what others ask -------------------------------------------------------------------------------

    def is_leader(self) -> bool:
        """Whether this node leads, as far as it may believe so now. Local, no I/O."""
        return self._clock.monotonic() < self._trusted_until

    @property
    def state(self) -> State:
        if self._state is State.LEADER and not self.is_leader():
            return State.FOLLOWER
        return self._state

    @property
    def term(self) -> int | None:
        """The term this node leads, None when it does not."""
        return self._term if self.is_leader() else None

    @property
    def settled(self) -> bool:
        """Whether this leader may act where PostgreSQL cannot fence it: no predecessor can still believe."""
        return self.is_leader() and self._clock.monotonic() >= self._settled_at

    @property
    def settled_term(self) -> int | None:
        """The term this node leads and may act for where PostgreSQL cannot fence it, else None."""
        term = self.term
        return term if self.settled and term == self._term else None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that only the current leader can commit. Raises NotLeader."""
        term = self.term
        if term is None:
            raise NotLeader
        with self._database.transaction() as connection:
            connection.execute("SET LOCAL lock_timeout = '1s'")
            row = connection.execute(queries.fence, {"term": term, "instance_id": self._instance_id}).fetchone()
            if row is None:
                raise NotLeader(f"term {term} is over; nothing was written")
            yield connection

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="leadership", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = ANSWER_TIMEOUT) -> None:
        """Release the leadership at once, leave the queue, end the thread (waiting `timeout` seconds at most)."""
        self._stopping.set()
        self._place_free.set()
        self._interrupt.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def stand(self) -> None:
        """Try to become standby: an invitation came, or a heartbeat showed that the place is free."""
        if self._state is State.FOLLOWER:
            self._place_free.set()

    def reconsider(self) -> None:
        """`eligible` changed: an ineligible leader resigns, an ineligible standby leaves the queue."""
        if self._eligible():
            self.stand()
        else:
            self._interrupt.set()

    def release_leader_lock(self) -> None:
        """End this node's term cleanly; the standby takes over within milliseconds. Nothing when it does not lead."""
        if self._state is State.LEADER:
            self._resigning.set()
            self._interrupt.set()

    # -- the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._place_free.set()  # the first try needs no invitation
        while True:
            self._place_free.wait()
            if self._stopping.is_set():
                return
            if not self._eligible():
                continue
            self._interrupt.clear()  # meant for what this node was, not for what it becomes
            try:
                self.acquire_leader_lock()
            except StatementFailed as exc:
                log.error("Leadership: PostgreSQL refuses: %s", exc)
                self._try_again()
            except DatabaseError as exc:
                log.debug("Leadership: %s", exc)
                self._try_again()
            except Exception:
                log.exception("Leadership: an error nobody foresaw; this node does not lead")
                self._try_again()

    def _try_again(self) -> None:
        if not self._stopping.wait(RETRY_PAUSE * random.uniform(0.5, 1.5)):  # noqa: S311 - spreads retries
            self._place_free.set()

    def acquire_leader_lock(self) -> None:
        """Stand by, wait for the lock, lead until the term ends. Returns when this node is a follower again.

        Raises DatabaseError when PostgreSQL cannot be reached or the session breaks while standing by.
        """
        session = Session(
            self._database,
            self._session_name,
            {
                "idle_session_timeout": SERVER_PATIENCE,
                "client_connection_check_interval": "1s",
                "lock_timeout": f"{WAIT_SLICE}s",
                "statement_timeout": "0",
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
                "tcp_user_timeout": "10s",
            },
        )
        try:
            standby_key = lock_key(STANDBY_LOCK)
            if session.query("SELECT pg_try_advisory_lock($1)", standby_key, timeout=ANSWER_TIMEOUT) != [("t",)]:
                return
            self._state = State.STANDBY
            log.info("Standby: this node is next in line to lead")
            if self._wait_for_lock(session):
                self._lead(session, standby_key)
        finally:
            self._state = State.FOLLOWER
            session.close()

    def _wait_for_lock(self, session: Session) -> bool:
        """Wait in slices inside the leader lock; False when stopped or no longer eligible."""
        while self._may_wait():
            try:
                session.query(
                    "SELECT pg_advisory_lock($1)", lock_key(LEADER_LOCK), timeout=WAIT_SLICE + 10, waker=self._interrupt
                )
                return self._may_wait()
            except StatementFailed as exc:
                if exc.sqlstate != LOCK_NOT_AVAILABLE:
                    raise
            except Interrupted:
                break
        return False

    def _may_wait(self) -> bool:
        return not self._stopping.is_set() and self._eligible()

    def _lead(self, session: Session, standby_key: int) -> None:
        self._resigning.clear()  # asked of an earlier term, or of none
        started = self._clock.monotonic()
        row = session.query(_PROMOTE, self._instance_id, self._node_name, timeout=ANSWER_TIMEOUT)[0]
        self._term = int(row[0] or 0)
        clean = row[1] == "t"
        self._settled_at = started if clean else started + TRUST_WINDOW
        self._trusted_until = started + TRUST_WINDOW
        self._state = State.LEADER
        if session.query("SELECT pg_advisory_unlock($1)", standby_key, timeout=ANSWER_TIMEOUT) != [("t",)]:
            log.warning("Lock %s was not held at release", STANDBY_LOCK)
        log.info("LEADER: this node leads, term %d", self._term)
        _is_leader.set(1)
        _term.set(self._term)
        _changes.labels("begun").inc()
        reason = "unknown"
        try:
            self._on_elected(self._term)
            reason = self._keep_leading(session)
        except SessionLost as exc:
            reason = str(exc)
        except StatementFailed as exc:
            reason = f"the ping failed: {exc}"
        finally:
            # Whatever happened, even an error nobody foresaw: not leader from here on.
            self._trusted_until = float("-inf")
            self._settled_at = float("inf")
            _is_leader.set(0)
            _changes.labels("ended").inc()
            log.info("LEADER: this node does not lead any more, term %d: %s", self._term, reason)
            self._on_lost()

    def _keep_leading(self, session: Session) -> str:
        """Ping until the term ends; returns why it ended cleanly, raises when it did not."""
        standby_identity = lock_identity(STANDBY_LOCK)
        invite_pause, invite_at = INVITE_FIRST, self._clock.monotonic() + INVITE_FIRST
        while True:
            session.wait_for_end(PING_INTERVAL, self._interrupt)
            self._interrupt.clear()
            if self._stopping.is_set():
                return self._release(session, "it stops")
            if self._resigning.is_set():
                self._resigning.clear()
                return self._release(session, "it was asked to")
            if not self._eligible():
                return self._release(session, "its NGINX cannot serve")
            started = self._clock.monotonic()
            has_standby = session.query(_PING, *standby_identity, timeout=PING_TIMEOUT) == [("t",)]
            now = self._clock.monotonic()
            _pings.observe(now - started)
            self._trusted_until = started + TRUST_WINDOW
            if has_standby:
                invite_pause, invite_at = INVITE_FIRST, now + INVITE_FIRST
            elif now >= invite_at:
                invited = session.query(_INVITE, self._instance_id, timeout=PING_TIMEOUT)
                # Nobody there to invite: ask less and less often.
                invite_pause = INVITE_FIRST if invited else min(invite_pause * 2, INVITE_LONGEST)
                invite_at = now + invite_pause

    def _release(self, session: Session, reason: str) -> str:
        self._trusted_until = float("-inf")  # before the lock is free, not after
        session.query(_RELEASE, self._term, self._instance_id, timeout=PING_TIMEOUT)
        if session.query("SELECT pg_advisory_unlock($1)", lock_key(LEADER_LOCK), timeout=PING_TIMEOUT) != [("t",)]:
            log.warning("Lock %s was not held at release", LEADER_LOCK)
        return reason

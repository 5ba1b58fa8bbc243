"""Log-ins and the sessions they open.

A session is one log-in. Its access tokens are good while it is; it has one good refresh token at a time, and each
use replaces it. A refresh token that comes a second time was copied (RFC 9700 section 4.14.2): nobody can tell
which of the two holders is the thief, so the session ends for both. A client that loses the answer to a refresh
therefore logs in again.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from lyttle_ops.accounts.passwords import hash_password, needs_upgrade, verify_password
from lyttle_ops.accounts.store import queries
from lyttle_ops.accounts.throttle import KNOWN_FOR, WINDOW, Buckets, TooManyAttempts
from lyttle_ops.db import Database
from lyttle_ops.db.connection import Connection
from lyttle_ops.errors import LyttleOpsError

log = logging.getLogger(__name__)

# Each check takes 19 MiB and a core; more at once would only starve the other requests.
_checks = threading.BoundedSemaphore(2)
_CHECK_WAIT = 1.0  # seconds


class InvalidCredentials(LyttleOpsError):
    """The user name or the password is wrong."""


class SessionEnded(LyttleOpsError):
    """The session is over; log in again."""


@dataclass(frozen=True, slots=True)
class Session:
    """A good row of `api_sessions`."""

    id: UUID
    username: str
    refresh_id: UUID  # jti of the one refresh token that is good now
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class User:
    """A user whose password was just verified, under the hash it was verified against."""

    username: str
    password_hash: str


def authenticate(database: Database, username: str, password: str, address: str) -> User:
    """Check a password, within the limits of lyttle_ops.accounts.throttle.

    `address` is the client's IP address, or anything else for a local one. No connection is held while the
    password is checked. Raises InvalidCredentials and TooManyAttempts.
    """
    if not _checks.acquire(timeout=_CHECK_WAIT):
        raise TooManyAttempts(retry_after=1)
    try:
        return _authenticate(database, username, password, Buckets.of(username, address), address)
    finally:
        _checks.release()


def _authenticate(database: Database, username: str, password: str, buckets: Buckets, address: str) -> User:
    limits = buckets.limits()
    with database.connection() as connection:
        state = connection.execute(
            queries.login_state,
            {
                "username": username,
                "known": buckets.known,
                "known_seconds": KNOWN_FOR,
                "window": WINDOW,
                "buckets": list(limits),
                "allowed": list(limits.values()),
            },
        ).fetchone()
    assert state is not None
    seconds = buckets.seconds_blocked(state["blocked"], state["known"])
    if seconds:
        raise TooManyAttempts(seconds)
    stored: str | None = state["password_hash"]
    if not verify_password(stored, password):
        with database.connection() as connection:
            connection.execute(queries.record_failure, {"buckets": list(limits)})
        # An unknown name is not written down: it may be a password typed into the wrong field.
        log.warning("Log-in refused for %s from %s", username if stored else "an unknown user", address or "local")
        raise InvalidCredentials
    assert stored is not None
    with database.connection() as connection:
        connection.execute(
            queries.record_success, {"buckets": [buckets.user, buckets.pair, buckets.known], "known": buckets.known}
        )
        if needs_upgrade(stored):
            fresh = hash_password(password)
            values = {"username": username, "password_hash": fresh, "old_hash": stored}
            if connection.execute(queries.upgrade_hash, values).rowcount:
                stored = fresh
    return User(username, stored)


def open_session(database: Database, user: User, lifetime: int) -> Session:
    """A session of `lifetime` seconds. Raises InvalidCredentials when the password changed meanwhile."""
    values = {
        "id": uuid4(),
        "refresh_id": uuid4(),
        "username": user.username,
        "password_hash": user.password_hash,
        "lifetime": lifetime,
    }
    with database.connection() as connection:
        row = connection.execute(queries.open_session, values).fetchone()
    if row is None:
        raise InvalidCredentials
    return _session(row)


def log_in(database: Database, username: str, password: str, address: str, lifetime: int) -> Session:
    """`authenticate`, then `open_session`."""
    return open_session(database, authenticate(database, username, password, address), lifetime)


def refresh_session(connection: Connection, session_id: UUID, refresh_id: UUID) -> Session:
    """Replace the session's refresh token. Raises SessionEnded; a token used before ends the session."""
    values = {"id": session_id, "refresh_id": refresh_id, "next_id": uuid4()}
    row = connection.execute(queries.rotate_session, values).fetchone()
    if row is not None:
        return _session(row)
    revoked = revoke_session(connection, session_id)
    if revoked is not None:
        log.warning("A refresh token of %s came a second time; the session is ended", revoked)
    raise SessionEnded


def revoke_session(connection: Connection, session_id: UUID) -> str | None:
    """End a session; its user's name, None when it was over already."""
    row = connection.execute(queries.revoke_session, {"id": session_id}).fetchone()
    return None if row is None else str(row["username"])


def find_session(connection: Connection, session_id: UUID) -> Session | None:
    """The session while it is good, else None."""
    row = connection.execute(queries.valid_session, {"id": session_id}).fetchone()
    return None if row is None else _session(row)


def session_is_valid(connection: Connection, session_id: UUID) -> bool:
    """Whether the session is neither revoked nor over."""
    return find_session(connection, session_id) is not None


def prune(connection: Connection) -> int:
    """Delete what nothing looks at any more: attempts out of every window, long ended sessions. How many rows."""
    attempts = connection.execute(queries.prune_attempts, {"window": WINDOW, "known_seconds": KNOWN_FOR})
    return attempts.rowcount + connection.execute(queries.prune_sessions).rowcount


def _session(row: Mapping[str, Any]) -> Session:
    return Session(**row)

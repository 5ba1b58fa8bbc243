"""Driver errors become ours here and nowhere else; they are told apart by class and SQLSTATE, never by text."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import psycopg_pool
from psycopg import errors as pg

from lyttle_ops.errors import LyttleOpsError


class DatabaseError(LyttleOpsError):
    """PostgreSQL refused a statement."""


class DatabaseUnavailable(DatabaseError):
    """PostgreSQL cannot be reached, is starting or shutting down, or ended the session."""


class DatabaseBusy(DatabaseError):
    """PostgreSQL did not get to it in time: a lock or statement time-out passed, or it deadlocked. Try again."""


class DatabaseMisconfigured(DatabaseError):
    """PostgreSQL is there, but not usable as configured: password, database, permissions, or a pooler."""


class LoginRefused(DatabaseMisconfigured):
    """PostgreSQL is there and lets nobody in as configured: password, database, pg_hba.conf."""


class UniqueConflict(DatabaseError):
    """A row with this key exists already."""

    def __init__(self, message: str | None = None, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


_LOGIN_REFUSED = (pg.InvalidPassword, pg.InvalidAuthorizationSpecification, pg.InvalidCatalogName)
_BUSY = (pg.LockNotAvailable, pg.QueryCanceled, pg.DeadlockDetected, pg.SerializationFailure)


@contextmanager
def translated(secrets: tuple[str, ...] = ()) -> Iterator[None]:
    """Raise our error for a driver's, with the driver's as its cause.

    `secrets` are struck out of the message, and out of the cause by dropping it when it held one.
    """
    try:
        yield
    except UniqueConflict:
        raise
    except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed) as exc:
        text = str(exc).strip()
        clean = text
        for secret in secrets:
            clean = clean.replace(secret, "***")
        error = _classify(exc, clean)
        raise error from (exc if clean == text else None)


def _classify(exc: Exception, text: str) -> DatabaseError:
    if isinstance(exc, pg.UniqueViolation):
        return UniqueConflict(text, constraint=exc.diag.constraint_name)
    if isinstance(exc, _LOGIN_REFUSED):
        return LoginRefused(text)
    if isinstance(exc, pg.InsufficientPrivilege):
        return DatabaseMisconfigured(text)
    if isinstance(exc, _BUSY):
        return DatabaseBusy(text)
    if isinstance(exc, psycopg.errors.ConnectionTimeout | psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed):
        return DatabaseUnavailable(f"PostgreSQL cannot be reached: {text}")
    if isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError):
        # A refused log-in has no SQLSTATE in libpq < 18: the server's FATAL is only text there.
        if exc.sqlstate is None and isinstance(exc, psycopg.OperationalError) and _is_refused_login(text):
            return LoginRefused(text)
        return DatabaseUnavailable(f"PostgreSQL cannot be reached: {text}")
    return DatabaseError(text)


def _is_refused_login(text: str) -> bool:
    return any(
        words in text
        for words in (
            "password authentication failed",
            "no pg_hba.conf entry",
            "does not exist",
            "no password supplied",
        )
    )

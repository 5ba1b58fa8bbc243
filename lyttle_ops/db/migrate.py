"""Schema migrations by Alembic, run by whichever node starts first, one at a time for the whole cluster.

Expand, then contract: code one version older runs on the newer schema. So a database whose revision this
version does not know is newer and fine; it is left alone.
"""

import logging
import time
from pathlib import Path

import psycopg

from lyttle_ops.db.connection import Connection, Database
from lyttle_ops.db.errors import DatabaseBusy

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_KEY = 0x4C59545F4D494752  # "LYT_MIGR": fixed, since the lock must work on an empty database
LOCK_DEADLINE = 120.0  # seconds to wait for another node's migration
DDL_LOCK_TIMEOUT = "5s"  # a migration that cannot get its table lock steps aside instead of queueing everyone
DDL_TRIES = 5


def head() -> str:
    """The newest revision this version brings."""
    return max(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def current(database: Database) -> str | None:
    """The database's revision; None when it is empty."""
    with database.connection() as connection:
        return _current(connection)


def migrate(database: Database) -> bool:
    """Bring the schema to `head()`; True when something was done.

    `database` may be the owner role's (DATABASE_MIGRATION_URL). Safe to call from any number of nodes at
    once. Raises DatabaseBusy when another migration or a table lock lasts too long, and DatabaseError with
    PostgreSQL's message when a migration fails; each migration is one transaction, so nothing is half done.
    """
    with database.translated(), database.connect(bounded=False, options="-c timezone=UTC") as connection:
        # No statement time-out here: a migration may take its time, only its lock waits may not.
        if _is_current(connection):
            return False
        _take_lock(connection)
        try:
            if _is_current(connection):
                return False
            for attempt in range(1, DDL_TRIES + 1):
                try:
                    _upgrade(connection)
                    break
                except psycopg.errors.LockNotAvailable:
                    if attempt == DDL_TRIES:
                        raise
                    log.warning("Migration waits for a table lock, try %d of %d", attempt, DDL_TRIES)
                    time.sleep(attempt)
            log.info("Database schema migrated to %s", head())
            return True
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))


def _is_current(connection: Connection) -> bool:
    revision = _current(connection)
    return revision is not None and revision >= head()


def _current(connection: Connection) -> str | None:
    row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL AS exists").fetchone()
    if not (row and row["exists"]):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row["version_num"]) if row else None


def _take_lock(connection: Connection) -> None:
    deadline = time.monotonic() + LOCK_DEADLINE
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s) AS taken", (LOCK_KEY,)).fetchone()
        if row and row["taken"]:
            return
        if time.monotonic() > deadline:
            raise DatabaseBusy(
                f"another node has been migrating the schema for over {LOCK_DEADLINE:.0f} s; "
                "pg_locks and pg_stat_activity show which"
            )
        time.sleep(0.1)


def _upgrade(connection: Connection) -> None:
    # Alembic and SQLAlchemy cost 0.3 s and 25 MB: imported only when there is something to migrate.
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, pool
    from sqlalchemy.exc import DBAPIError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    options = f"{connection.info.options} -c lock_timeout={DDL_LOCK_TIMEOUT}"
    # One of its own: SQLAlchemy manages its connection's state itself.
    dedicated = psycopg.connect(connection.info.dsn, password=connection.info.password, options=options)
    engine = create_engine("postgresql+psycopg://", creator=lambda: dedicated, poolclass=pool.StaticPool)
    try:
        with engine.connect() as alchemy:
            config.attributes["connection"] = alchemy
            try:
                command.upgrade(config, "head")
            except DBAPIError as exc:
                if isinstance(exc.orig, psycopg.Error):
                    raise exc.orig from None
                raise
    finally:
        engine.dispose()
        dedicated.close()

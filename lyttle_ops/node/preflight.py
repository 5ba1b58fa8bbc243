"""What must be true before a node starts, each failure with the way out."""

import logging
import os
import re
from pathlib import Path

from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.db import Database, DatabaseMisconfigured, load_queries
from lyttle_ops.db.connection import Connection
from lyttle_ops.errors import ConfigurationError

log = logging.getLogger(__name__)
queries = load_queries("lyttle_ops.node")

_MINIMUM_POSTGRES = 140000


def check_folders(state_dir: Path, run_dir: Path) -> list[str]:
    """Make both folders; returns warnings. Raises ConfigurationError naming the variable and the folder."""
    for variable, folder in (("STATE_DIR", state_dir), ("RUN_DIR", run_dir)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as exc:
            raise ConfigurationError(
                f"{variable}: {folder} cannot be written: {exc.strerror}; give it a folder this user may write"
            ) from exc
    # <RUN_DIR>/<8 hex>/nginx-tls.sock must fit into sockaddr_un (unix(7): 108 bytes with the final NUL).
    if len(str(run_dir)) > 80:
        raise ConfigurationError(f"RUN_DIR: {run_dir} is too long for unix sockets in it; at most 80 characters")
    if not _is_tmpfs(run_dir):
        return [f"RUN_DIR {run_dir} is not a tmpfs: private keys in clear will be written to a disk"]
    return []


def check_database(database: Database) -> None:
    """Verify the server's version and that sessions are ours alone.

    Raises DatabaseUnavailable, or DatabaseMisconfigured for PostgreSQL < 14 and for a transaction pooler
    (PgBouncer's default mode), behind which session locks are lost without a sign.
    """
    with database.translated(), database.connect(options="") as first:
        if first.info.server_version < _MINIMUM_POSTGRES:
            version = first.info.parameter_status("server_version")
            raise DatabaseMisconfigured(
                f"PostgreSQL {version} is too old; at least 14 is needed (idle_session_timeout)"
            )
        # A pooler answers the start-up packet itself, with a process id that is no server process's.
        before = _backend(first)
        if before == first.info.backend_pid:
            return
        with database.connect(options="") as second, second.transaction():
            other, after = _backend(second), _backend(first)
        if before == other or before != after:
            raise DatabaseMisconfigured(
                f"{database.address} is a connection pooler in transaction mode (PgBouncer): advisory locks do not "
                "survive there. Point DATABASE_URL at PostgreSQL itself, or set pool_mode = session"
            )


def agree_on_key(database: Database, keyring: Keyring) -> None:
    """The first node's master key is the cluster's. Raises ConfigurationError for a node that does not have it: it
    could serve none of the certificates."""
    with database.connection() as connection:
        row = connection.execute(queries.agree_on_key, {"key_id": keyring.key_id}).fetchone()
    assert row is not None  # the migration put it there
    if row["key_id"] not in keyring.key_ids:
        raise ConfigurationError(
            f"MASTER_KEY is not the cluster's (its id is {row['key_id']}, this node has "
            f"{' and '.join(keyring.key_ids)}): give every node the same MASTER_KEY, and while it is being changed the "
            "old one as MASTER_KEY_PREVIOUS"
        )
    if row["key_id"] != keyring.key_id:
        log.warning(
            "The cluster still uses MASTER_KEY_PREVIOUS (%s): once every node has the new MASTER_KEY (%s), run "
            "`lyttle-ops rotate-master-key` on one of them",
            row["key_id"], keyring.key_id,
        )  # fmt: skip


def _backend(connection: Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid() AS pid").fetchone()
    assert row is not None  # a SELECT without FROM gives one row
    return int(row["pid"])


def _is_tmpfs(folder: Path) -> bool:
    """Whether the mount that holds `folder` is a tmpfs or ramfs (proc(5), /proc/self/mountinfo)."""
    best, kind = "", ""
    resolved = str(folder.resolve())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind in ("tmpfs", "ramfs")

"""Preflight against real servers: folders, PostgreSQL, and PgBouncer in front of it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from lyttle_ops.db import Database, DatabaseMisconfigured
from lyttle_ops.errors import ConfigurationError
from lyttle_ops.node.preflight import check_database, check_folders
from tests.support import loopback
from tests.support.wait import until


@pytest.fixture
def bouncer(database_url: str) -> Iterator[Callable[[str], str]]:
    """Starts PgBouncer in a pool mode before the test's database; gives its URL."""
    parts = urlsplit(database_url)
    processes: list[subprocess.Popen[bytes]] = []
    folder = Path(tempfile.mkdtemp(prefix="lyttle-bouncer-"))
    folder.chmod(0o755)

    def start(mode: str) -> str:
        host = loopback.address()
        port = loopback.port(host)
        (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port}\n[pgbouncer]\n"
            f"listen_addr = {host}\nlisten_port = {port}\nauth_type = plain\nauth_file = {folder}/users\n"
            f"pool_mode = {mode}\nunix_socket_dir =\n"
        )
        user = "postgres" if os.geteuid() == 0 else None
        if user:
            for path in (folder, folder / "users", folder / "ini"):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        processes.append(
            subprocess.Popen(
                [program, str(folder / "ini")], user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
        url = f"postgresql://{parts.username}:{parts.password}@{host}:{port}{parts.path}"

        def answers() -> bool:
            try:
                psycopg.connect(url, connect_timeout=1).close()
            except psycopg.OperationalError:
                return False
            return True

        until(answers, what="PgBouncer answers")
        return url

    yield start
    for process in processes:
        process.kill()
        process.wait()
    shutil.rmtree(folder)


def test_postgresql_itself_is_accepted(database: Database) -> None:
    check_database(database)


def test_a_transaction_pooler_is_refused_with_the_reason(bouncer: Callable[[str], str]) -> None:
    database = Database(bouncer("transaction"), "test", size=0)
    with pytest.raises(DatabaseMisconfigured, match="transaction mode"):
        check_database(database)


def test_a_session_pooler_is_accepted(bouncer: Callable[[str], str]) -> None:
    check_database(Database(bouncer("session"), "test", size=0))


def test_a_folder_that_cannot_be_made_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"STATE_DIR: .*file/state cannot be written"):
        check_folders(tmp_path / "file" / "state", tmp_path)


def test_keys_on_a_disk_are_warned_about(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        assert check_folders(tmp_path, Path(memory)) == []
    assert any("tmpfs" in warning for warning in check_folders(tmp_path, Path("/var/tmp")))

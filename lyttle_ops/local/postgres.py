"""A private PostgreSQL server: own data folder, own loopback address, nothing of the machine's own server."""

import os
import pwd
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psycopg

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.local import processes

USER = "lyttle"
_CONFIGURATION = """
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
max_connections = 200
shared_buffers = 64MB
fsync = {fsync}
password_encryption = 'scram-sha-256'
client_connection_check_interval = '1s'
logging_collector = off
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %a '
"""


class PostgresMissing(LyttleOpsError):
    """PostgreSQL's programs are not installed: run `make setup`, or `apt-get install postgresql`."""


class PostgresFailed(LyttleOpsError):
    """The private PostgreSQL server did not start."""


def find_programs(data: Path | None = None) -> Path:
    """The program folder of the PostgreSQL that made `data`, else of the newest (Debian keeps them off PATH).

    Raises PostgresMissing.
    """
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    with suppress(OSError):
        made_by = (data / "PG_VERSION").read_text().strip() if data else ""
        candidates += [path for path in candidates if path.parts[-3] == made_by]
    if candidates:
        return candidates[-1].parent
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    raise PostgresMissing


class PostgresServer:
    """One server in `folder`. PostgreSQL refuses to run as root, so root runs it as the user postgres."""

    def __init__(self, folder: Path, host: str, port: int, password: str, durable: bool = True) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "postgresql.log"
        self.host, self.port, self._password = host, port, password
        self._durable = durable
        self._programs = find_programs(self.data)

    def url(self, dbname: str = "lyttle") -> str:
        """libpq URL of a database, password included."""
        return f"postgresql://{USER}:{self._password}@{self.host}:{self.port}/{dbname}"

    def start(self) -> None:
        """Create the data folder when it is new, start, wait until it answers. Raises PostgresFailed."""
        new = not (self.data / "PG_VERSION").exists()
        if new:
            self._initialise()
        elif self.is_running():
            return
        self._wait_until_reaped()
        (self.data / "postgresql.auto.conf").write_text(
            _CONFIGURATION.format(host=self.host, port=self.port, fsync="on" if self._durable else "off")
        )
        started = self._run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "-t", "60", "start")
        if started.returncode:
            tail = self.log.read_text(errors="replace")[-800:] if self.log.exists() else started.stderr
            raise PostgresFailed(f"PostgreSQL did not start on {self.host}:{self.port}:\n{tail.strip()}")
        if new:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                connection.execute("CREATE DATABASE lyttle")

    def stop(self, mode: str = "fast") -> None:
        """Stop it if it runs; `mode` as pg_ctl's (fast ends sessions, immediate is a crash)."""
        if self.is_running():
            self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", "30", "stop")

    def is_running(self) -> bool:
        pid = self._pid()
        return (
            pid is not None
            and processes.identify(pid) is not None  # pg_ctl takes a postmaster that was killed for a running one
            and self._run("pg_ctl", "-D", self.data, "status").returncode == 0
        )

    def answers(self) -> bool:
        """Whether a session can be had and used within two seconds."""
        try:
            with psycopg.connect(self.url(), connect_timeout=2, autocommit=True) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def _pid(self) -> int | None:
        """Process id of the newest postmaster by its own file, which one that was killed leaves behind."""
        try:
            return int((self.data / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None

    def _wait_until_reaped(self) -> None:
        # A new server refuses to start while the old one's pid is still there, be it as a zombie.
        pid, deadline = self._pid(), time.monotonic() + 10
        while pid is not None and processes.is_zombie(pid) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _initialise(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.data, ignore_errors=True)  # what an interrupted initdb left
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        password_file = self.folder / "initdb-password"
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._password)
        if os.geteuid() == 0:
            os.chown(password_file, owner.pw_uid, owner.pw_gid)
        try:
            made = self._run(
                "initdb", "-D", self.data, "-U", USER, "--auth=scram-sha-256", f"--pwfile={password_file}",
                "--encoding=UTF8", "--locale=C.UTF-8", *([] if self._durable else ["--no-sync"]),
            )  # fmt: skip
        finally:
            password_file.unlink()
        if made.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            raise PostgresFailed(f"initdb failed in {self.folder}: {made.stderr.strip()}")

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        # Output goes to files: the server inherits pg_ctl's descriptors and would hold a pipe open.
        argv = [str(self._programs / program), *map(str, arguments)]
        user = "postgres" if os.geteuid() == 0 else None
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}
        if program == "initdb":
            return subprocess.run(
                argv,
                capture_output=True,
                text=True,
                user=user,
                group=user,
                extra_groups=[] if user else None,
                env=environment,
                cwd="/",
            )
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
            user=user, group=user, extra_groups=[] if user else None, env=environment, cwd="/", start_new_session=True,
        )  # fmt: skip

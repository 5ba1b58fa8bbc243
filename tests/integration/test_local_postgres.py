"""The private PostgreSQL server of the local cluster: what counts as running."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from lyttle_ops.local import processes
from lyttle_ops.local.postgres import PostgresServer
from tests.support import loopback, wait


def test_a_postmaster_that_was_killed_does_not_run_though_nobody_has_reaped_it_and_a_start_waits_for_that() -> None:
    host = loopback.address()
    folder = Path(tempfile.mkdtemp(prefix="lyttle-pg-"))
    folder.chmod(0o755)  # PostgreSQL is another user's
    server = PostgresServer(folder / "postgres", host, loopback.port(host), "a-password-of-tests", durable=False)
    dead = subprocess.Popen(["true"], user="postgres" if os.geteuid() == 0 else None)  # as the server itself
    try:
        server.start()
        server.stop("immediate")
        wait.until(lambda: processes.is_zombie(dead.pid), what="a zombie")
        pid_file = server.data / "postmaster.pid"
        pid_file.write_text(f"{dead.pid}\n{server.data}\n0\n{server.port}\n\n{host}\n\n\n")
        owner = server.data.stat()
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        assert not server.is_running()
        dead.wait()
        server.start()
        assert server.is_running()
        assert server.answers()
    finally:
        dead.wait()
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)

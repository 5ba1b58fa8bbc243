"""`lyttle-ops node` as a container runs it, with addresses and folders of its own."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import requests

from lyttle_ops.db import Database
from tests.support import loopback

PASSWORD = "a-password-of-the-test"


class NodeProcess:
    """One node with addresses and folders of its own; `start` may be called again after it ended."""

    def __init__(self, url: str, name: str = "n1", folder: Path | None = None, **settings: str) -> None:
        self.host = loopback.address()
        self.own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="lyttle-node-", dir="/dev/shm"))
        self.http = f"{self.host}:{loopback.port(self.host)}"
        self.api = f"{self.host}:{loopback.port(self.host)}"
        self.environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": url,
            "MASTER_KEY": base64.b64encode(bytes(range(32))).decode(),
            "NODE_NAME": name,
            "NODE_MACHINE_ID": "machine",
            "STATE_DIR": str(self.folder / "state"),
            "RUN_DIR": str(self.folder / "run"),
            "HTTP_LISTEN": self.http,
            "HTTPS_LISTEN": f"{self.host}:{loopback.port(self.host)}",
            "API_LISTEN": self.api,
            "ACME_DIRECTORY_URL": "https://127.0.0.1:1/dir",
            "ADMIN_PASSWORD": PASSWORD,
            **settings,
        }
        self.patch = "pass"  # Python that its process runs first
        self.output: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "NodeProcess":
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from lyttle_ops import cli; {self.patch}; cli.main()", "node"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        return self

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout
        with process.stdout:
            self.output.extend(process.stdout)

    def wait(self, timeout: float = 40) -> int:
        """Its exit code, once all that it said was read. Programs of its own may outlive it by a moment."""
        assert self.process
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code

    def ready(self) -> bool:
        return self.get("/health/ready").status_code == 200

    def get(self, path: str) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(f"http://{self.api}{path}", timeout=5)

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def status(self) -> dict[str, Any]:
        assert self.process
        for file in (self.folder / "run").glob("*/status.json"):
            found: dict[str, Any] = json.loads(file.read_text())
            if found["pid"] == self.process.pid:
                return found
        raise KeyError("status.json")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self) -> None:
        self.stop()
        if self.own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def text(self) -> str:
        return "".join(self.output)


def add_proxy(url: str, domain: str, target: str) -> None:
    database = Database(url, "test", size=1)
    with database.transaction() as connection:
        connection.execute(
            "WITH p AS (INSERT INTO proxies (type, domains, proxy_pass_host, revision)"
            " VALUES ('PROXY', ARRAY[%s], %s, next_revision()) RETURNING id)"
            " INSERT INTO proxy_domains SELECT %s, id FROM p",
            (domain, target, domain),
        )
    database.close()

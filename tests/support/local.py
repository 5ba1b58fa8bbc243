"""`lyttle-ops local` as a person runs it: a subprocess, on addresses and in folders of the test's own."""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from lyttle_ops.local.processes import Process
from lyttle_ops.local.state import StateFile

_random = random.SystemRandom()

COMMAND = [sys.executable, "-m", "lyttle_ops.cli", "local"]


class LocalCommand:
    """Runs `lyttle-ops local …` for one state folder and one /24 of addresses."""

    def __init__(self, state_folder: Path, base: str) -> None:
        self.state_folder = state_folder
        self.base = base

    def argv(self, command: str, *arguments: str) -> list[str]:
        where = ["--base", self.base] if command == "up" else []
        return [*COMMAND, command, "--state-dir", str(self.state_folder), *where, *arguments]

    def run(
        self, command: str, *arguments: str, timeout: float = 240, environment: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run it to its end; the caller looks at the exit code."""
        return subprocess.run(
            self.argv(command, *arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )

    def do(self, command: str, *arguments: str) -> str:
        """Run it; AssertionError with what it said unless it succeeds. Its standard output."""
        done = self.run(command, *arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`local status --json`."""
        found: dict[str, Any] = json.loads(self.do("status", "--json"))
        return found

    def node(self, name: str) -> dict[str, Any]:
        """One node of `status`."""
        found: dict[str, Any] = next(node for node in self.status()["nodes"] if node["name"] == name)
        return found

    def leader(self) -> dict[str, Any] | None:
        """The node of `status` that leads; AssertionError when two say they do."""
        leaders = [node for node in self.status()["nodes"] if node["leader"]]
        assert len(leaders) <= 1, leaders
        return leaders[0] if leaders else None

    def token(self, name: str = "n1") -> str:
        """An access token, asked of this node; good on all of them."""
        status = self.status()
        login = {
            "username": status["admin"]["username"],
            "password": Path(status["admin"]["password_file"]).read_text().strip(),
        }
        api = next(node["api"] for node in status["nodes"] if node["name"] == name)
        answer = requests.post(f"{api}/auth/login", json=login, timeout=10)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def processes(self) -> dict[str, Process]:
        """Every process that cluster.json names, alive or not."""
        state = StateFile(self.state_folder).read()
        return {} if state is None else state.processes

    def log(self, name: str) -> str:
        """What a node (or: companions) wrote since the last `up`."""
        return (self.state_folder / "logs" / f"{name}.log").read_text(errors="replace")


@contextmanager
def local_command() -> Iterator[LocalCommand]:
    """A LocalCommand whose cluster is down and whose files are gone at the end, whatever happened."""
    # Not below pytest's tmp_path: PostgreSQL's user may not enter that.
    with tempfile.TemporaryDirectory(prefix="lyttle-local-") as folder:
        Path(folder).chmod(0o755)
        command = LocalCommand(Path(folder) / "state", f"127.{_random.randrange(16, 250)}.{_random.randrange(1, 250)}")
        try:
            yield command
        finally:
            command.do("down", "--wipe")

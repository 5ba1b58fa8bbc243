"""The container's health check: six questions, none of them asked of PostgreSQL, answered within 2 seconds.

healthcheck.sh runs this file by itself and without site-packages, since Swarm asks every few seconds and starting
Python is most of the cost; so it imports nothing of ours. It reads this task's status.json and asks this task's own
sockets: another task's NGINX may answer on the shared ports.

Exit code 0: this container shall live. 1: it shall be replaced, or an update that brought it be rolled back. Each
answer is a line: `ok`, `FAILED`, or `note` for what a person should know but a restart would not mend. Once this
instance had been ready, a PostgreSQL that is away, an API that does not answer (the node starts it anew), a refused
configuration and failure mode are notes: NGINX serves, and Swarm must not kill every serving node at once. One that
is stopping in order is asked nothing more.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OLDEST_STATUS = 10.0  # seconds; the node writes it every 2
PATIENCE = 0.7  # seconds for one answer over a socket; two are asked for
LONGEST_ANSWER = 65536  # bytes

Say = Callable[[str, str], None]  # (which check, what is so)


class Report:
    """The lines of one health check."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.healthy = True

    def ok(self, check: str, message: str) -> None:
        self._add("ok", check, message)

    def note(self, check: str, message: str) -> None:
        self._add("note", check, message)

    def failed(self, check: str, message: str) -> None:
        self._add("FAILED", check, message)
        self.healthy = False

    def _add(self, kind: str, check: str, message: str) -> None:
        self.lines.append(f"{kind:7} {check}: {' '.join(message.split())}")  # a reason may have lines of its own


def examine(run_dir: Path) -> Report:
    """Ask the instance in `run_dir` (RUN_DIR) all six questions."""
    report = Report()
    found = _newest_status(run_dir)
    if isinstance(found, str):
        report.failed("app", found)  # without it nothing says where to ask the rest
        return report
    folder, status = found
    state = status.get("state")
    # Failure mode waits for a person, but only an instance that once was ready may: a new version shall be rolled back.
    settled = state == "ready" or (state in ("failed", "stopping") and bool(status.get("once_ready")))
    bearable = report.note if settled else report.failed

    _app(report, status, settled)
    if settled and state == "stopping":
        return report  # its sockets are closed on purpose
    _nginx(report, bearable, folder, status)
    answer = _ask(folder / "api.sock", "/health/live")
    if isinstance(answer, str):
        consequence = "; NGINX serves on without it" if settled and report.healthy else ""
        bearable("API", f"does not answer: {answer}{consequence}")
    else:
        report.ok("API", "answers")
    database = status.get("database") or {}
    if database.get("ok"):
        report.ok("database", "reachable")
    else:
        consequence = "; NGINX serves on without it" if settled else ""
        bearable("database", f"not reachable: {database.get('error') or 'silent'}{consequence}")
    return report


def _newest_status(run_dir: Path) -> tuple[Path, dict[str, Any]] | str:
    """The status of the instance that wrote last and its folder, or why there is none that counts."""
    newest: tuple[float, Path, dict[str, Any]] | None = None
    for file in run_dir.glob("*/status.json"):
        try:
            status = json.loads(file.read_text("utf-8"))
            written_at = float(status["written_at"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if newest is None or written_at > newest[0]:
            newest = written_at, file.parent, status
    if newest is None:
        return f"does not run: there is no status file in {run_dir}"
    written_at, folder, status = newest
    if not Path("/proc", str(status.get("pid"))).exists():
        return f"does not run: process {status.get('pid')}, which wrote the status, is gone"
    age = time.time() - written_at
    if age > OLDEST_STATUS:
        return f"hangs: its status is {age:.0f} s old"
    return folder, status


def _app(report: Report, status: dict[str, Any], settled: bool) -> None:
    state, failure = status.get("state"), status.get("failure")
    if state == "ready":
        report.ok("app", f"runs, version {status.get('version')}")
    elif settled:
        report.note("app", f"FAILURE MODE: {failure}" if state == "failed" else f"is {state}")
    else:
        report.failed("app", f"is not ready but {state}{f': {failure}' if failure else ''}")


def _nginx(report: Report, bearable: Say, folder: Path, status: dict[str, Any]) -> None:
    """Three of the six: NGINX runs, answers HTTP, and serves the configuration that was tested and applied last."""
    try:
        pid = int((folder / "nginx.pid").read_text())
        running = f"-p\0{folder}/\0" in Path("/proc", str(pid), "cmdline").read_text().replace(" ", "\0")
    except (OSError, ValueError):
        running = False
    if running:
        report.ok("NGINX", f"runs, process {pid}")
    else:
        report.failed("NGINX", "does not run")

    answer = _ask(folder / "nginx.sock", "/release")
    ports = (status.get("checks") or {}).get("nginx") or {}
    if isinstance(answer, str):
        report.failed("NGINX HTTP", f"no answer on its own socket: {answer}")
    elif not ports.get("ok"):
        report.failed("NGINX HTTP", str(ports.get("message") or "the node has not looked at its ports yet"))
    else:
        report.ok("NGINX HTTP", "answers")

    try:
        live = os.readlink(folder / "live").rpartition("/")[2]
    except OSError:
        live = None
    served = None if isinstance(answer, str) else answer.decode("ascii", "replace").strip()
    error = (status.get("nginx") or {}).get("error")
    if live is None:
        report.failed("NGINX configuration", "there is none that passed its test")
    elif served is not None and served != live:
        report.failed("NGINX configuration", f"release {live} is live, NGINX serves {served}")
    elif error:
        bearable("NGINX configuration", f"release {live} is served; a newer one was refused: {error}")
    else:
        report.ok("NGINX configuration", f"release {live} is valid")


def _ask(path: Path, target: str) -> bytes | str:
    """The body of a 200 from whoever listens on the UNIX socket `path`, else why there is none."""
    # By hand: importing http.client takes longer than everything else here.
    deadline = time.monotonic() + PATIENCE
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(path))
            connection.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            while len(answer) < LONGEST_ANSWER and (part := connection.recv(4096)):
                answer += part
                connection.settimeout(max(0.01, deadline - time.monotonic()))
    except TimeoutError:
        return f"silent for {PATIENCE} s"
    except OSError as exc:
        return exc.strerror or str(exc)
    head, separator, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n")[0].split()
    if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/"):
        return "it closed the connection without an answer"
    return body if words[1] == b"200" else f"HTTP {words[1].decode('ascii', 'replace')}"


def main() -> int:
    """Print the report of RUN_DIR's instance; the exit code says whether it is healthy."""
    report = examine(Path(os.environ.get("RUN_DIR") or "/run/lyttle-ops"))
    print("\n".join(report.lines))  # noqa: T201 - Docker keeps what a health check prints
    return 0 if report.healthy else 1


if __name__ == "__main__":
    sys.exit(main())

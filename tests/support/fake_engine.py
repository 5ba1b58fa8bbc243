"""A Docker engine that only answers questions, on a unix socket: for what a playbook concludes, without a Swarm.

It may keep Swarm's configs as well, in which the deploy lock and the history stand.
"""

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


class Configs:
    """Configs by id, as Swarm keeps them: a name is taken once, and only labels change."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self._made = 0
        self._mutex = threading.Lock()

    def create(self, spec: Mapping[str, Any]) -> str | None:
        """The new config's id; None when the name is taken."""
        with self._mutex:
            if any(each["Spec"]["Name"] == spec["Name"] for each in self.kept.values()):
                return None
            self._made += 1
            self.kept[f"c{self._made}"] = {"ID": f"c{self._made}", "Version": {"Index": 1}, "Spec": dict(spec)}
            return f"c{self._made}"

    def answer(self, method: str, path: str, body: Any) -> tuple[int, object]:
        """HTTP status and content of a call below /configs."""
        if path == "/configs":
            return 200, list(self.kept.values())
        if path == "/configs/create":
            made = self.create(body)
            return (201, {"ID": made}) if made else (409, {"message": "the name is taken"})
        name = path.split("/")[2]
        with self._mutex:
            if name not in self.kept:
                return 404, {"message": f"config {name} not found"}
            if method == "DELETE":
                return 200, self.kept.pop(name)
            if method == "POST":
                self.kept[name]["Spec"] = body
            return 200, self.kept[name]


@contextmanager
def fake_engine(path: Path, answers: Mapping[str, object], configs: Configs | None = None) -> Iterator[str]:
    """`answers` by path, without its query; 404 to everything else. Yields its DOCKER_HOST."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.path.partition("?")[0]
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if configs is not None and asked.startswith("/configs"):
                status, found = configs.answer(self.command, asked, body)
            else:
                known = answers.get(asked) if self.command == "GET" else None
                status, found = (404, {"message": "not found"}) if known is None else (200, known)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()
            path.unlink()

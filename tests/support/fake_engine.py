"""A Docker engine on a unix socket that only answers questions, and keeps configs: for what a playbook concludes,
without a Swarm."""

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


@contextmanager
def fake_engine(path: Path, answers: Mapping[str, object]) -> Iterator[str]:
    """`answers` by path, without its query, a function is asked; 404 to everything else. The list at /configs may be
    added to and changed. Yields its DOCKER_HOST."""
    configs: Any = answers.get("/configs", [])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = self.path.partition("?")[0]
            found = answers.get(where, _config(configs, where))
            self._answer(found() if callable(found) else found)

        def do_POST(self) -> None:
            where = self.path.partition("?")[0]
            spec = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if where == "/configs/create":
                made = {"ID": f"made{len(configs)}", "Version": {"Index": 1}, "Spec": spec}
                configs.append(made)
                self._answer(made)
            else:
                found = _config(configs, where.removesuffix("/update"))
                if found:
                    found["Spec"] = spec
                self._answer(found)

        def do_DELETE(self) -> None:
            found = _config(configs, self.path)
            if found:
                configs.remove(found)
            self._answer(found)

        def _answer(self, found: object) -> None:
            content = json.dumps({"message": "not found"} if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

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


def _config(configs: list[dict[str, Any]], path: str) -> dict[str, Any] | None:
    return next((config for config in configs if path == f"/configs/{config['ID']}"), None)

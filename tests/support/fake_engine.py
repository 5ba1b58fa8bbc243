"""A Docker engine on a unix socket that only answers questions, and keeps Swarm's configs, in which the deploy lock and
the history stand: for what a playbook concludes, without a Swarm."""

import base64
import itertools
import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

_numbers = itertools.count(1)


def config(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A config as Swarm lists it, holding `document`."""
    spec = {"Name": name, "Data": base64.b64encode(json.dumps(document).encode()).decode()}
    return {"ID": f"made{next(_numbers)}", "Version": {"Index": 1}, "Spec": spec}


@contextmanager
def fake_engine(path: Path, answers: Mapping[str, object]) -> Iterator[str]:
    """`answers` by path, without its query, a function is asked; 404 to everything else. The list at /configs, if there
    is one, is added to and changed: a name is taken once. Yields its DOCKER_HOST."""
    configs: Any = answers.get("/configs", [])
    mutex = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = self.path.partition("?")[0]
            found = answers.get(where, _config(configs, where))
            self._answer(found() if callable(found) else found)

        def do_POST(self) -> None:
            where = self.path.partition("?")[0]
            spec = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with mutex:
                if where != "/configs/create":
                    found = _config(configs, where.removesuffix("/update"))
                    if found:
                        found["Spec"] = spec
                    self._answer(found)
                elif any(each["Spec"]["Name"] == spec["Name"] for each in configs):
                    self._answer({"message": "the name is taken"}, 409)
                else:
                    configs.append({"ID": f"made{next(_numbers)}", "Version": {"Index": 1}, "Spec": spec})
                    self._answer(configs[-1], 201)

        def do_DELETE(self) -> None:
            with mutex:
                found = _config(configs, self.path)
                if found:
                    configs.remove(found)
                self._answer(found)

        def _answer(self, found: object, status: int = 200) -> None:
            content = json.dumps({"message": "not found"} if found is None else found).encode()
            self.send_response(404 if found is None else status)
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
            path.unlink()


def _config(configs: list[dict[str, Any]], path: str) -> dict[str, Any] | None:
    return next((config for config in configs if path == f"/configs/{config['ID']}"), None)

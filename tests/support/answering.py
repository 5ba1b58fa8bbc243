"""What answers as a node's task does, to whoever asks which one serves there."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import loopback


@contextmanager
def answering(task: str, address: str) -> Iterator[int]:
    """A server on a port of `address`, which it yields, that names `task` as the one that serves."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.headers["Host"].startswith(address):  # under a domain's name its upstream would answer
                self.send_header("X-Lyttle-Task", task)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    port = loopback.port(address)
    with http.server.ThreadingHTTPServer((address, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield port
        finally:
            server.shutdown()
            thread.join()

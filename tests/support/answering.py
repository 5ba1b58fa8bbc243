"""What answers as a node's task does, to whoever asks which one serves there."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support import loopback


@contextmanager
def answering(task: str | Callable[[], str], address: str) -> Iterator[int]:
    """A server on a port of `address`, which it yields, that names `task`, or what it returns now, as the one that
    serves; 502 as long as it is empty."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serves = task if isinstance(task, str) else task()
            self.send_response(200 if serves else 502)
            if serves and self.headers["Host"].startswith(address):  # under a domain's name its upstream would answer
                self.send_header("X-Lyttle-Task", serves)
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

"""The demo upstream: an HTTP server that answers every request with what it saw, as one line of JSON."""

import json
import urllib.request
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "lyttle-demo"
    sys_version = ""
    wbufsize = -1  # head and body leave in one packet
    disable_nagle_algorithm = True
    timeout = 75  # seconds an idle connection is kept

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        received = len(self.rfile.read(length))
        if "transfer-encoding" in self.headers:
            self.close_connection = True  # its body is not read, so nothing may follow on this connection
        body = json.dumps(
            {
                "host": self.headers.get("host", ""),
                "path": self.path,
                "method": self.command,
                "client": self.headers.get("x-forwarded-for", self.client_address[0]),
                "body_bytes": received,
                "headers": {name.lower(): value for name, value in self.headers.items()},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body) + 1))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body + b"\n")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a demo needs no access log."""


def answers(url: str, timeout: float) -> bool:
    """Whether the upstream at `url` answers within `timeout` seconds."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no HTTP proxy lies before loopback
    try:
        with direct.open(url, timeout=timeout) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, HTTPException):
        return False


def serve(host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens already; call its serve_forever. Raises OSError."""
    return _Server((host, port), _Echo)

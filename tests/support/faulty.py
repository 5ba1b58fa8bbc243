"""A server that does wrong what a test says, and counts it, for tests of the load generator."""

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import loopback
from tests.support.load import Load, Report
from tests.support.nginx import certificate

HOST = "site1.example"


class Server(socketserver.ThreadingTCPServer):
    """An HTTPS server that does what `behave` does with each connection, and counts what it is told to count."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, folder: Path, behave: Callable[["Server", ssl.SSLSocket], None], protocol: str) -> None:
        pair = certificate(HOST)
        self.ca = folder / "ca.pem"
        self.ca.write_text(pair.chain_pem)
        (folder / "pair.pem").write_bytes(pair.chain_pem.encode() + pair.key_pem)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "pair.pem")
        self.context.set_alpn_protocols([protocol])
        self.behave = behave
        self.lock = threading.Lock()
        self.counts: dict[str, int] = {}
        address = loopback.address()
        super().__init__((address, loopback.port(address)), socketserver.BaseRequestHandler)

    def count(self, what: str) -> int:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1
            return self.counts[what]

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        with contextlib.suppress(OSError), self.context.wrap_socket(request, server_side=True) as connection:
            self.behave(self, connection)  # OSError: the generator hung up

    def handle_error(self, request: object, client_address: object) -> None:
        """Counted where it matters."""


@contextmanager
def serving(
    folder: Path, behave: Callable[[Server, ssl.SSLSocket], None], protocol: str = "http/1.1"
) -> Iterator[Server]:
    with Server(folder, behave, protocol) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def load_of(server: Server, kind: str, rate: float = 100) -> Load:
    address, port = server.server_address[:2]
    return Load([str(address)], HOST, rate, server.ca, http_port=port, https_port=port, mix={kind: 1})


def loaded(server: Server, kind: str, requests: int = 120) -> Report:
    with load_of(server, kind) as load:
        load.wait(requests, 30)
    return load.report()

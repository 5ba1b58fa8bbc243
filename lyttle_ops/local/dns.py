"""A DNS server for a cluster on one machine: every name has the same addresses.

The local CA validates any domain against the local nodes, so each A query gets the nodes' addresses and
every other type an empty answer (no AAAA: the nodes listen on IPv4 loopback only). RFC 1035, UDP.
"""

import socket
import socketserver
import threading
from collections.abc import Sequence
from contextlib import suppress

from dnslib import QTYPE, RR, A, DNSError, DNSRecord

TTL = 1  # seconds; nodes come and go
_PROBE_TIMEOUT = 0.2  # seconds for one connection on this machine


class NameServer:
    """Answers on `host`:`port` with `addresses`, which may be replaced while it runs.

    With `probe` (a TCP port) only the addresses that accept a connection there are given, as a health-checked
    DNS does; all of them when none does. So a validation never lands on a node that was killed.
    """

    def __init__(self, host: str, port: int, addresses: Sequence[str], probe: int | None = None) -> None:
        self.host, self.port = host, port
        self.addresses = tuple(addresses)
        self._probe = probe
        self._server: socketserver.ThreadingUDPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """As pebble's -dnsserver takes it: host:port."""
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Listen, and answer in threads. Raises OSError when the port is taken."""
        name_server = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, connection = self.request
                with suppress(DNSError, OSError):  # not a query, or nobody waits for the answer any more
                    connection.sendto(name_server.answer(data), self.client_address)

        self._server = socketserver.ThreadingUDPServer((self.host, self.port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="dns", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; nothing happens when it does not."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = self._thread = None

    def answer(self, query: bytes) -> bytes:
        """The reply to one DNS message. Raises dnslib.DNSError when it is none."""
        request = DNSRecord.parse(query)
        reply = request.reply()
        if request.q.qtype == QTYPE.A:
            for address in self._live():
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=TTL))
        return bytes(reply.pack())

    def _live(self) -> tuple[str, ...]:
        addresses = self.addresses
        if self._probe is None:
            return addresses
        live = []
        for address in addresses:
            with suppress(OSError), socket.create_connection((address, self._probe), _PROBE_TIMEOUT):
                live.append(address)
        return tuple(live) or addresses

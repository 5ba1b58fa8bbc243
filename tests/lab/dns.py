"""DNS of a lab: the test domains lead to the hosts, every other question goes to this machine's resolvers.

`python -m tests.lab.dns --listen ADDRESS --zone ZONE HOST …` answers on port 53, UDP and TCP, until it is ended.
A host that does not accept connections on port 80 is left out of an answer while another one does, as a DNS with
health checks does; so a CA's validation never lands on a host that is off.
"""

import argparse
import signal
import socket
import socketserver
import struct
import threading
from contextlib import suppress
from pathlib import Path

from dnslib import QTYPE, DNSError, DNSRecord

from lyttle_ops.local.dns import NameServer

_PORT = 53
_TIMEOUT = 4.0  # seconds for a resolver's answer
_RESOLV_CONF = Path("/etc/resolv.conf")


class Resolver:
    """Answers names below `zone` with the addresses of `names`, the rest through `upstreams`."""

    def __init__(self, names: NameServer, zone: str, upstreams: list[str]) -> None:
        self._names, self._zone, self._upstreams = names, zone.lower().rstrip("."), upstreams

    def answer(self, query: bytes, tcp: bool) -> bytes:
        """The reply to one DNS message. Raises dnslib.DNSError when it is none, OSError without any answer."""
        request = DNSRecord.parse(query)
        name = str(request.q.qname).lower().rstrip(".")
        if name == self._zone or name.endswith(f".{self._zone}"):
            return self._names.answer(query)
        if request.q.qtype == QTYPE.AAAA:
            return bytes(request.reply().pack())  # nothing outside is reachable over IPv6: do not let anybody try
        for upstream in self._upstreams:
            with suppress(OSError):
                return _ask_tcp(upstream, query) if tcp else _ask(upstream, query)
        raise OSError(f"none of {', '.join(self._upstreams)} answered")


def resolvers(text: str) -> list[str]:
    """The servers that resolv.conf's `text` names."""
    lines = (line.split() for line in text.splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--zone", required=True)
    parser.add_argument("hosts", nargs="+")
    words = parser.parse_args()
    names = NameServer(words.listen, _PORT, words.hosts, probe=80)
    resolver = Resolver(names, words.zone, resolvers(_RESOLV_CONF.read_text()))

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, connection = self.request
            with suppress(DNSError, OSError):
                connection.sendto(resolver.answer(query, tcp=False), self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        timeout = 10

        def handle(self) -> None:
            with suppress(DNSError, OSError, struct.error):
                (size,) = struct.unpack("!H", self.rfile.read(2))
                reply = resolver.answer(self.rfile.read(size), tcp=True)
                self.wfile.write(struct.pack("!H", len(reply)) + reply)

    class Streams(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    class Datagrams(socketserver.ThreadingUDPServer):
        daemon_threads = True

    address = (words.listen, _PORT)
    with Datagrams(address, Datagram) as datagrams, Streams(address, Stream) as streams:
        for server in (datagrams, streams):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


def _ask(server: str, query: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as connection:
        connection.settimeout(_TIMEOUT)
        connection.connect((server, _PORT))
        connection.send(query)
        return connection.recv(65535)


def _ask_tcp(server: str, query: bytes) -> bytes:
    with socket.create_connection((server, _PORT), _TIMEOUT) as connection, connection.makefile("rb") as answer:
        connection.sendall(struct.pack("!H", len(query)) + query)
        (size,) = struct.unpack("!H", answer.read(2))
        return bytes(answer.read(size))


if __name__ == "__main__":
    main()

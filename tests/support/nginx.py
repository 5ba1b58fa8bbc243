"""A real NGINX in a folder of its own, upstreams behind it, and clients before it."""

import os
import secrets
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dnslib
import dnslib.server
import psutil

from lyttle_ops.nginx.candidate import throw_away_certificate
from lyttle_ops.nginx.model import Applied, CertificateFiles, Layout, Site, Target
from lyttle_ops.nginx.releases import NGINX
from lyttle_ops.settings import load
from tests.support import loopback
from tests.support.wait import until

THUMBPRINT = "jt2UgIE-CAzfmFZ4TAIbprnqt8tM7QVgRQ_Kj5jI1ug"


def layout(**changes: Any) -> Layout:
    """A layout for tests that only render."""
    plain = Layout(
        folder=Path("/run/lyttle-ops/0a1b2c3d"),
        http_listen=("0.0.0.0:80", "[::]:80"),
        https_listen=("0.0.0.0:443", "[::]:443"),
        name_servers=("10.0.0.2",),
        instance_id="0a1b2c3d-0000-4000-8000-000000000000",
        node_name="n1",
        nginx_version=(1, 22, 1),
        thumbprint=THUMBPRINT,
    )
    return replace(plain, **changes)


def site(number: int = 1, **changes: Any) -> Site:
    """A plain proxy of siteNUMBER.example to 127.0.0.1:8080."""
    plain = Site(number, (f"site{number}.example",), "proxy", Target("http", "127.0.0.1", 8080))
    return replace(plain, **changes)


class Running:
    """An NGINX that tests start, stop and ask; everything it left is ended by `close`."""

    def __init__(self, deadline: float = 15.0, **variables: str) -> None:
        # Workers of another account must be able to pass through, so not pytest's own folder.
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # RUN_DIR is a tmpfs
        self.base = Path(tempfile.mkdtemp(prefix="lyttle-ng-", dir=memory))
        self.base.chmod(0o755)
        self.folder = self.base / secrets.token_hex(4)
        self.host = loopback.address()
        self.http, self.https = loopback.port(self.host), loopback.port(self.host)
        while self.https == self.http:
            self.https = loopback.port(self.host)
        self.settings = load(
            {
                "DATABASE_URL": "postgresql://nobody@127.0.0.1/none",
                "MASTER_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
                "NODE_NAME": "test",
                "HTTP_LISTEN": f"{self.host}:{self.http}",
                "HTTPS_LISTEN": f"{self.host}:{self.https}",
                "NAME_SERVERS": "127.0.0.1:9",
                "ACCESS_LOG": "true",
                "LOG_FORMAT": "json",
                **variables,
            }
        )
        self.nginx = NGINX(self.settings, self.folder, "11111111-2222-4333-8444-555555555555", deadline=deadline)
        self.process: subprocess.Popen[bytes] | None = None
        self.error_log = self.base / "error.log"
        self.access_log = self.base / "access.log"

    def apply(self, sites: list[Site], certificates: dict[str, CertificateFiles] | None = None) -> Applied:
        return self.nginx.apply(sites, certificates or {}, THUMBPRINT)

    def start(self) -> None:
        self.nginx.prepare_start()
        with self.error_log.open("ab") as errors, self.access_log.open("ab") as access:
            self.process = subprocess.Popen(
                self.nginx.command(),
                stdin=subprocess.DEVNULL,
                stdout=access,
                stderr=errors,
                env={"PATH": os.environ["PATH"]},
            )
        until(lambda: self.nginx.live_release(), what=f"NGINX answers; {self.error_log.read_text()}")
        # The first worker answers while the master still makes the others (worker_processes auto).
        until(lambda: len(self.workers()) == os.cpu_count(), what="all workers run")

    def serve(self, sites: list[Site], certificates: dict[str, CertificateFiles] | None = None) -> Applied:
        """Apply, and start when it does not run yet."""
        applied = self.apply(sites, certificates)
        if self.process is None:
            self.start()
        return applied

    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children()

    def close(self) -> None:
        try:
            if self.process is not None:
                self.process.terminate()
                try:
                    self.process.wait(10)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
            self.nginx.prepare_start()
            if self.error_log.exists():
                sys.stdout.write(self.error_log.read_text(errors="replace"))  # pytest shows it of a test that failed
        finally:
            shutil.rmtree(self.base, ignore_errors=True)

    # -- clients

    def get(
        self, domain: str, path: str = "/", method: str = "GET", body: bytes = b"", tls: bool = False, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower-case names) and body of one request on a fresh connection."""
        with self.connect(domain if tls else None) as connection:
            lines = [f"{method} {path} HTTP/1.1", f"Host: {domain}", "Connection: close"]
            lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
            lines += [f"Content-Length: {len(body)}"] if body else []
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            return parse(receive(connection))

    @contextmanager
    def connect(self, domain: str | None = None) -> Iterator[socket.socket]:
        """A fresh connection, through TLS for `domain` when one is given."""
        with socket.create_connection((self.host, self.https if domain else self.http), timeout=10) as connection:
            if domain is None:
                yield connection
                return
            with client_context().wrap_socket(connection, server_hostname=domain) as secured:
                yield secured


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def receive(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body (chunks joined) of a whole HTTP/1.1 answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        joined = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            joined, body = joined + body[: int(size, 16)], body[int(size, 16) + 2 :]
        body = joined
    return int(first.split()[1]), headers, body


def certificate(*domains: str) -> CertificateFiles:
    return throw_away_certificate(domains)


class Handler(BaseHTTPRequestHandler):
    """Answers with what it was asked: request line, headers, body. Silent, HTTP/1.1."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            received = b""
            while size := int(self.rfile.readline(), 16):
                received += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return received
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_any(self) -> None:
        body = self.body()
        self.answer(200, f"{self.requestline}\n{self.headers}".encode() + body)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)


@contextmanager
def upstream(
    handler: type[BaseHTTPRequestHandler] = Handler, tls: CertificateFiles | None = None, host: str | None = None
) -> Iterator[ThreadingHTTPServer]:
    """A real HTTP (or HTTPS) server on an address of its own; its `server_address` is (host, port)."""
    address = host or loopback.address()
    server = _Server((address, loopback.port(address)), handler)
    if tls:
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(tls.chain_pem.encode() + tls.key_pem)
            file.flush()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(file.name)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news here."""


def target(server: socketserver.BaseServer, scheme: Any = "http", path: str = "", host: str | None = None) -> Target:
    """Where `server` listens; `host` names it otherwise than by its address."""
    address = server.server_address
    return Target(scheme, host or str(address[0]), int(address[1]), path)


@contextmanager
def name_server(answer: Callable[[str], str | None]) -> Iterator[str]:
    """A DNS server; `answer` maps a name to an IPv4 address or None. Yields its address as NAME_SERVERS takes it."""

    class Resolver(dnslib.server.BaseResolver):
        def resolve(self, request: Any, handler: Any) -> Any:
            reply = request.reply()
            address = answer(str(request.q.qname).rstrip("."))
            if address is None:
                reply.header.rcode = dnslib.RCODE.NXDOMAIN
            elif request.q.qtype == dnslib.QTYPE.A:
                reply.add_answer(dnslib.RR(request.q.qname, rdata=dnslib.A(address), ttl=1))
            return reply

    host = loopback.address()
    port = loopback.port(host)
    server = dnslib.server.DNSServer(
        Resolver(), host, port, logger=dnslib.server.DNSLogger("-request,-reply,-truncated,-error,-recv,-send,-data")
    )
    server.start_thread()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop()
        server.server.server_close()

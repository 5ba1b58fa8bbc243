"""A real ACME CA for tests: pebble, its DNS, an HTTP-01 answerer, and a proxy before the CA that counts and fails.

Pebble builds every URL from the Host header and ACME signs the URL, so the proxy ends TLS with a certificate of
its own and passes Host on unchanged: clients see and sign the proxy's URLs, and pebble agrees.

Run as a program (`python -m tests.support.ca`) it is one node that issues one certificate, to be killed.
"""

import http.client
import json
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from josepy.b64 import b64decode

from lyttle_ops.certificates.encryption import Keyring, Undecryptable
from lyttle_ops.certificates.service import Certificates
from lyttle_ops.cluster.locks import Locks
from lyttle_ops.db import Database
from lyttle_ops.local.ca import CertificateAuthority, make_tls
from lyttle_ops.local.dns import NameServer
from tests.support import loopback

CHALLENGE = "/.well-known/acme-challenge/"
# Pebble's paths, as its directory and resources show them.
STEPS = {
    "/dir": "directory",
    "/nonce-plz": "nonce",
    "/sign-me-up": "newAccount",
    "/order-plz": "newOrder",
    "/my-order/": "order",
    "/authZ/": "authorization",
    "/chalZ/": "challenge",
    "/finalize-order/": "finalize",
    "/certZ/": "certificate",
    "/my-account/": "account",
    "/renewal-info/": "renewalInfo",
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        self._mutex = threading.Lock()
        super().__init__((host, port), handler)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def server_bind(self) -> None:
        socket.socket.bind(self.socket, self.server_address)  # HTTPServer's own looks up the host's name

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._mutex:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._mutex:
            self._open.discard(request)
        super().shutdown_request(request)

    def replace(self, old: socket.socket, new: socket.socket) -> None:
        """TLS takes a connection over, or gives it back: the one that close() can cut."""
        with self._mutex:
            self._open.discard(old)
            self._open.add(new)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed, or a connection cut on purpose

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        with self._mutex:
            left = list(self._open)
        for connection in left:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + 5
        while self._open and time.monotonic() < deadline:
            time.sleep(0.01)
        self.server_close()


class Answerer:
    """Port 80 of every node: answers any HTTP-01 token with `<token>.<thumbprint>`. `silent` makes it a 404."""

    def __init__(self, host: str, port: int) -> None:
        self.thumbprint = ""
        self.silent = False
        answerer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.path.removeprefix(CHALLENGE)
                body = b"" if answerer.silent else f"{token}.{answerer.thumbprint}".encode()
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _Server(host, port, Handler)

    def close(self) -> None:
        self._server.close()


@dataclass
class Fault:
    """What happens to the next `times` requests of `step`: before or after the CA has seen them.

    action: `hold` waits until release() (then goes on), `drop` cuts the connection, `answer` answers itself.
    """

    step: str
    when: str = "before"
    action: str = "drop"
    times: int = 1
    answer: tuple[int, dict[str, str], bytes] | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)
    _dropped: bool = False

    def release(self) -> None:
        self._released.set()

    def drop(self) -> None:
        """End a hold by cutting the connection: the request never arrives, or its answer does not."""
        self._dropped = True
        self._released.set()

    def wait(self) -> bool:
        """Hold; True when the connection is to be cut."""
        self._released.wait()
        return self._dropped


class CAProxy:
    """The proxy before the CA. `seen` counts requests by step, `orders` the newOrders the CA accepted."""

    def __init__(self, ca: CertificateAuthority, folder: Path, host: str, port: int) -> None:
        tls = make_tls(folder, [host])
        self.root = tls.root
        self.directory_url = f"https://{host}:{port}/dir"
        self.seen: Counter[str] = Counter()
        self.orders = 0
        self.payloads: list[dict[str, Any]] = []  # of accepted newOrders
        self.renewal_window: tuple[datetime, datetime] | None = None  # set: the CA offers ARI; None: it does not
        self._ca = ca
        self._upstream_tls = ssl.create_default_context(cafile=str(ca.root))
        self._faults: list[Fault] = []
        self._mutex = threading.Lock()
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(tls.certificate, tls.key)
        self._server = _Server(host, port, self._handler(server_tls))

    def fault(self, step: str, when: str = "before", action: str = "drop", times: int = 1) -> Fault:
        return self._add(Fault(step, when, action, times))

    def answer(
        self, step: str, status: int, problem: dict[str, Any], headers: dict[str, str] | None = None, times: int = 1
    ) -> Fault:
        """Let the next requests of `step` be answered by the proxy with a problem document."""
        content = {"Content-Type": "application/problem+json", **(headers or {})}
        return self._add(Fault(step, "before", "answer", times, (status, content, json.dumps(problem).encode())))

    def clear(self) -> None:
        with self._mutex:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.release()

    def reset(self) -> None:
        """As new: no faults, no ARI, counters at zero."""
        self.clear()
        self.renewal_window = None
        self.seen, self.orders, self.payloads = Counter(), 0, []

    def close(self) -> None:
        self.clear()
        self._server.close()

    def _add(self, fault: Fault) -> Fault:
        with self._mutex:
            self._faults.append(fault)
        return fault

    def _take(self, step: str, when: str) -> Fault | None:
        with self._mutex:
            for fault in self._faults:
                if fault.step in (step, "*") and fault.when == when and fault.times > 0:
                    fault.times -= 1
                    fault.reached.set()
                    return fault
        return None

    def _handler(self, server_tls: ssl.SSLContext) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one write an answer: two small ones would meet Nagle and delayed ACK
            disable_nagle_algorithm = True

            def setup(self) -> None:
                self.request.settimeout(60)
                # Here and not in accept(), which a silent client would block.
                self.plain = self.request
                self.request = server_tls.wrap_socket(self.request, server_side=True)
                proxy._server.replace(self.plain, self.request)
                self.upstream: http.client.HTTPSConnection | None = None
                super().setup()

            def finish(self) -> None:
                try:
                    super().finish()
                finally:
                    if self.upstream is not None:
                        self.upstream.close()
                    proxy._server.replace(self.request, self.plain)
                    self.request.close()

            def do_GET(self) -> None:
                self.relay()

            do_HEAD = do_POST = do_GET

            def relay(self) -> None:
                step = next((name for path, name in STEPS.items() if self.path.startswith(path)), "other")
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.seen[step] += 1
                fault = proxy._take(step, "before")
                if fault is not None and self.suffer(fault):
                    return
                if step == "renewalInfo":
                    self.reply(200, {"Content-Type": "application/json"}, proxy._window())
                    return
                status, headers, answer = self.forward(body)
                if step == "newOrder" and status == 201:
                    with proxy._mutex:
                        proxy.orders += 1
                        proxy.payloads.append(json.loads(b64decode(json.loads(body)["payload"])))
                if step == "directory":
                    directory = json.loads(answer)
                    directory.pop("renewalInfo", None)  # pebble has its own from 2.6 on
                    if proxy.renewal_window is not None:
                        directory["renewalInfo"] = f"https://{self.headers['Host']}/renewal-info"
                    answer = json.dumps(directory).encode()
                fault = proxy._take(step, "after")
                if fault is not None and self.suffer(fault):
                    return
                self.reply(status, headers, answer)

            def suffer(self, fault: Fault) -> bool:
                """Let the fault happen; True when the request is done with."""
                if fault.action == "hold" and not fault.wait():
                    return False
                if fault.answer is not None:
                    self.reply(*fault.answer)
                    return True
                self.close_connection = True
                return True

            def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                if self.upstream is None:
                    self.upstream = http.client.HTTPSConnection(
                        proxy._ca.host, proxy._ca.port, context=proxy._upstream_tls, timeout=30
                    )
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "accept-encoding")}
                self.upstream.request(self.command, self.path, body or None, headers)
                response = self.upstream.getresponse()
                answer = response.read()
                kept = {
                    k: v
                    for k, v in response.getheaders()
                    if k.lower() not in ("content-length", "transfer-encoding", "connection", "date")
                }
                return response.status, kept, answer

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _window(self) -> bytes:
        if self.renewal_window is None:
            return b"{}"
        start, end = (point.isoformat().replace("+00:00", "Z") for point in self.renewal_window)
        return json.dumps({"suggestedWindow": {"start": start, "end": end}}).encode()


@dataclass(frozen=True)
class ACMESettings:
    """The settings the certificates room reads."""

    acme_directory_url: str
    acme_ca_file: Path | None
    acme_email: str | None = None


class Lab:
    """A CA with everything around it. `direct` are settings past the proxy, `settings` through it."""

    def __init__(self, folder: Path, nonce_rejects: int = 0) -> None:
        self.folder = folder
        self.host = loopback.address()
        http_port = loopback.port(self.host)
        self.answerer = Answerer(self.host, http_port)
        self.dns = NameServer(self.host, loopback.port(self.host), [self.host])
        self.dns.start()
        self.ca = CertificateAuthority(
            folder / "ca",
            self.host,
            port=loopback.port(self.host),
            management_port=loopback.port(self.host),
            dns_server=self.dns.address,
            http_port=http_port,
            nonce_rejects=nonce_rejects,
        )
        self.ca.start()
        self.proxy = CAProxy(self.ca, folder / "proxy", self.host, loopback.port(self.host))
        self.settings = ACMESettings(self.proxy.directory_url, self.proxy.root)
        self.direct = ACMESettings(self.ca.directory_url, self.ca.root)

    def close(self) -> None:
        self.proxy.close()
        self.ca.stop()
        self.dns.stop()
        self.answerer.close()


@contextmanager
def running_lab(nonce_rejects: int = 0) -> Iterator[Lab]:
    """A CA for the length of a block (0.3 s to start)."""
    folder = Path(tempfile.mkdtemp(prefix="lyttle-ca-"))
    lab = None
    try:
        lab = Lab(folder, nonce_rejects)
        yield lab
    finally:
        if lab is not None:
            lab.close()
        shutil.rmtree(folder, ignore_errors=True)


MASTER_KEY = bytes(range(32))


class TestNode:
    """What a node has of this room: a database, locks and the service, under an instance of its own."""

    __test__ = False

    def __init__(
        self, url: str, settings: ACMESettings, name: str, master_key: bytes = MASTER_KEY, register: bool = True
    ) -> None:
        self.name = name
        self.id: UUID = uuid4()
        self.database = Database(url, name, size=8)
        self.locks = Locks(self.database)
        self.keyring = Keyring(master_key)
        self.certificates = Certificates(self.database, self.keyring, self.locks, settings, name, self.id)
        if register:
            with self.database.transaction() as connection:
                connection.execute(
                    "INSERT INTO nodes (name, machine_id) VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, name)
                )
                connection.execute(
                    "INSERT INTO instances (id, node_name, hostname, version) VALUES (%s, %s, %s, '0')",
                    (self.id, name, name),
                )

    def close(self) -> None:
        self.certificates.stop()
        self.locks.close()
        self.database.close()


NodeMaker = Callable[..., TestNode]


@contextmanager
def node_maker(lab: Lab, url: str) -> Iterator[NodeMaker]:
    """Makes nodes of one cluster: make("n1"), make("n2", settings=…, master_key=…). All are closed at the end."""
    nodes: list[TestNode] = []

    def make(name: str = "n1", **options: Any) -> TestNode:
        options.setdefault("settings", lab.settings)
        node = TestNode(url, name=name, **options)
        nodes.append(node)
        with suppress(Undecryptable):
            lab.answerer.thumbprint = node.certificates.account_thumbprint()
        return node

    lab.proxy.reset()
    try:
        yield make
    finally:
        lab.proxy.reset()  # nothing may still wait when the nodes close
        for node in nodes:
            node.close()


def want(database: Database, *domains: str, enabled: bool = True) -> None:
    """An ssl proxy entry for these domains, as the proxies room would write it."""
    with database.transaction() as connection:
        row = connection.execute(
            "INSERT INTO proxies (type, domains, proxy_pass_host, ssl, enabled, revision) "
            "VALUES ('PROXY', %s, 'http://127.0.0.1:1', true, %s, next_revision()) RETURNING id",
            (sorted(domains), enabled),
        ).fetchone()
        assert row
        for domain in domains:
            connection.execute("INSERT INTO proxy_domains VALUES (%s, %s)", (domain, row["id"]))


def _issue_and_exit() -> None:
    environment = json.loads(os.environ["LYTTLE_TEST_NODE"])
    node = TestNode(
        environment["url"], ACMESettings(environment["directory"], Path(environment["root"])), environment["name"]
    )
    node.certificates.ensure_certificate(environment["domains"])
    node.close()


if __name__ == "__main__":
    _issue_and_exit()

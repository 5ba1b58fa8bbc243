"""A real three-node cluster with a counting, faulting proxy before its CA, as its users see it: over HTTP and HTTPS."""

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import requests
from cryptography import x509
from psycopg.rows import dict_row

from lyttle_ops.local.ca import CertificateAuthority, make_tls
from tests.support import loopback
from tests.support.ca import CAProxy
from tests.support.local import LocalCommand, local_command
from tests.support.wait import until

T = TypeVar("T")


class Cluster:
    """The handle tests hold: the API of each node, HTTPS on each node, the database, the CA's proxy, faults."""

    def __init__(self, local: LocalCommand, ca: CAProxy) -> None:
        self.local = local
        self.ca = ca
        status = local.status()
        self.nodes: dict[str, dict[str, Any]] = {node["name"]: node for node in status["nodes"]}
        self.dsn: str = status["database"]["dsn"]
        self.upstream: str = status["upstream"]
        self.root: str = status["ca"]["root"]
        password = Path(status["admin"]["password_file"]).read_text().strip()
        self._credentials = {"username": status["admin"]["username"], "password": password}
        self._session = requests.Session()
        self._session.trust_env = False
        self._log_in()

    def _log_in(self) -> None:
        answer = self._session.post(f"{self.any_api()}/auth/login", json=self._credentials, timeout=20)
        assert answer.status_code == 200, answer.text
        self._session.headers["authorization"] = f"Bearer {answer.json()['access_token']}"

    def any_api(self) -> str:
        return str(next(iter(self.nodes.values()))["api"])

    # -- the API -----------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: object = None, node: str = "n1") -> requests.Response:
        url = f"{self.nodes[node]['api']}{path}"
        headers = dict(self._session.headers)
        # A connection of its own each time: threads share no session, and a killed node leaves none behind.
        with requests.Session() as once:
            once.trust_env = False
            return once.request(method, url, json=body, headers=headers, timeout=30)

    def add(self, *domains: str, node: str = "n1", **fields: object) -> requests.Response:
        body = {"proxy_pass_host": self.upstream, "domains": list(domains), "ssl": True, **fields}
        return self.call("POST", "/proxy", body, node)

    def certificate(self, domain: str, node: str = "n1") -> dict[str, Any]:
        """The certificate whose names include `domain`, as the API shows it. KeyError when there is none yet."""
        answer = self.call("GET", "/certificates", node=node).json()
        for each in answer["items"]:
            if domain in each["domains"]:
                return dict(each)
        raise KeyError(domain)

    def wait_for_certificate(self, domain: str, timeout: float = 30, node: str = "n1") -> dict[str, Any]:
        """Until it is seen on all active nodes."""

        def done() -> dict[str, Any] | None:
            each = self.certificate(domain, node)
            installed = each["installed"]
            return each if each["state"] == "issued" and installed["nodes"] == installed["of"] > 0 else None

        found = until(done, timeout, f"certificate for {domain} on all nodes", every=0.05)
        assert found
        return found

    def leader(self, node: str = "n1") -> dict[str, Any]:
        return dict(self.call("GET", "/cluster/leader", node=node).json())

    # -- the data plane ----------------------------------------------------------------------------------

    def serial(self, node: str, domain: str) -> int:
        """Serial of the certificate that a fresh handshake with `node` shows, verified against the CA's root."""
        return self._handshake(node, domain)[0]

    def get(self, node: str, domain: str, path: str = "/") -> tuple[int, bytes]:
        """Status and body of one HTTPS request on a fresh, verified connection."""
        _, status, body = self._handshake(node, domain, path)
        return status, body

    def _handshake(self, node: str, domain: str, path: str = "/") -> tuple[int, int, bytes]:
        host, port = self.nodes[node]["https"].removeprefix("https://").split(":")
        context = ssl.create_default_context(cafile=self.root)
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=domain) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
            assert shown
            secured.sendall(f"GET {path} HTTP/1.1\r\nHost: {domain}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := secured.recv(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        return x509.load_der_x509_certificate(shown).serial_number, int(head.split()[1]), body

    # -- the database ------------------------------------------------------------------------------------

    def rows(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        with psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def watch_term(self) -> Iterator[tuple[int, str]]:
        """The term and who has it, as often as asked, on one connection."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while True:
                row = connection.execute("SELECT term, node_name FROM leadership").fetchone()
                assert row
                yield row[0], row[1]

    # -- faults ------------------------------------------------------------------------------------------

    def status_of(self, node: str) -> dict[str, Any]:
        """What the node's own status file says now."""
        run = Path(self.local.state_folder)
        state = json.loads((run / "cluster.json").read_text())
        for file in (Path(state["run_folder"]) / node).glob("*/status.json"):
            status = json.loads(file.read_text())
            if status["pid"] == self.pid(node):
                return dict(status)
        raise KeyError(node)

    def pid(self, node: str) -> int:
        return self.local.processes()[node].pid

    def wait_ready(self, *nodes: str, timeout: float = 60) -> None:
        """Until these nodes (default: all) say that they are ready."""

        def ready() -> bool:
            return all(self.call("GET", "/health/ready", node=name).status_code == 200 for name in nodes or self.nodes)

        until(ready, timeout, "all nodes ready", every=0.1)

    def wait_settled(self, timeout: float = 60) -> tuple[str, str]:
        """Until there is a leader and a standby; their names."""

        def both() -> tuple[str, str] | None:
            rows = self.rows(
                "SELECT l.granted, split_part(a.application_name, '/', 4) AS node FROM pg_locks l"
                " JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'"
                " AND a.application_name LIKE 'lyttle/%%/lead/%%'"
            )
            waiting = [row["node"] for row in rows if not row["granted"]]
            if len(waiting) != 1:
                return None
            leader = self.rows("SELECT node_name FROM leadership WHERE released_at IS NULL")
            holders = {row["node"] for row in rows if row["granted"]}
            if not leader or leader[0]["node_name"] not in holders or leader[0]["node_name"] == waiting[0]:
                return None
            return leader[0]["node_name"], waiting[0]

        found = until(both, timeout, "a leader and a standby", every=0.05)
        assert found
        return found


def at_once(bodies: list[Callable[[], T]]) -> list[T]:
    """Run all of them at the same moment, each in a thread; their results in order."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return [future.result() for future in [pool.submit(body) for body in bodies]]


@contextmanager
def running_cluster(*arguments: str) -> Iterator[Cluster]:
    """Three nodes whose CA sits behind a counting proxy; all of it is gone at the end."""
    with local_command() as local:
        host = f"{local.base}.250"
        ca_folder = local.state_folder / "ca"
        local.state_folder.mkdir(parents=True)
        make_tls(ca_folder, [host])  # the CA takes these over, so the proxy can know its root before it starts
        ca = CertificateAuthority(
            ca_folder, host, port=14000, management_port=15000, dns_server=f"{host}:8053", http_port=8080
        )
        own = loopback.address()
        proxy = CAProxy(ca, local.state_folder / "proxy", own, loopback.port(own))
        try:
            local.do(
                "up", "--detach", "--acme-directory", proxy.directory_url, "--acme-ca-file", str(proxy.root), *arguments
            )
            yield Cluster(local, proxy)
        finally:
            proxy.close()


def seconds(body: Callable[[], object]) -> float:
    started = time.monotonic()
    body()
    return time.monotonic() - started

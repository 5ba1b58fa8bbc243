"""The load generator tells failures from retries: it counts each fault of a faulty server, and forgives none."""

import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lyttle_ops.nginx.model import Target
from tests.support import loopback, upstream
from tests.support.faulty import HOST, Server, load_of, loaded, serving
from tests.support.load import Load, Report
from tests.support.nginx import Running, certificate, site
from tests.support.wait import until


def request_of(connection: ssl.SSLSocket) -> str | None:
    """The path of the next request, body taken off too; None at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        if not part:
            return None
        head += part
    if head.startswith(b"POST"):
        left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while left:
            left -= len(connection.recv(left))
    return head.split()[1].decode()


def answer(path: str, status: str = "200 OK") -> bytes:
    body = json.dumps({"path": path, "body_bytes": 512})
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def reset(connection: ssl.SSLSocket) -> None:
    """Close with a TCP reset."""
    plain = connection.detach()
    bare = socket.socket(fileno=plain)
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    bare.close()


# What a server does wrong with one request of a hundred; each must be one failure, on any kind of request.


def resets(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    reset(connection)


def closes(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    connection.close()


def cuts_the_body(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    connection.sendall(answer(path)[:-1])
    connection.close()


def cuts_the_head(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    connection.sendall(b"HTTP/1.1 2")
    reset(connection)


def says_502(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    connection.sendall(answer(path, "502 Bad Gateway"))


def says_404(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    connection.sendall(answer(path, "404 Not Found"))


def answers_something_else(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    connection.sendall(answer("/load/other/0"))


def says_too_much(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    connection.sendall(answer(path) + b"HTTP/1.1 200 OK\r\n")
    connection.close()


def tells_no_length(server: Server, connection: ssl.SSLSocket, path: str) -> None:
    connection.sendall(f"HTTP/1.1 200 OK\r\n\r\n{path}".encode())
    connection.close()


def now_and_then(fault: Callable[[Server, ssl.SSLSocket, str], None]) -> Callable[[Server, ssl.SSLSocket], None]:
    def behave(server: Server, connection: ssl.SSLSocket) -> None:
        while connection.fileno() >= 0 and (path := request_of(connection)) is not None:
            if server.count("requests") % 25 == 7:
                server.count("faults")
                fault(server, connection, path)
            else:
                connection.sendall(answer(path))

    return behave


ANY = [cuts_the_body, cuts_the_head, says_502, says_404, answers_something_else, tells_no_length]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        *(("https", fault) for fault in [resets, closes, *ANY]),
        *(("post", fault) for fault in [resets, closes, says_502]),
        *(("keepalive", fault) for fault in [cuts_the_body, cuts_the_head, says_502, says_too_much]),
    ],
)
def test_each_fault_is_one_failure(
    tmp_path: Path, kind: str, fault: Callable[[Server, ssl.SSLSocket, str], None]
) -> None:
    with serving(tmp_path, now_and_then(fault)) as server:
        report = loaded(server, kind)
    assert report.total.failures == server.counts["faults"] >= 4, str(report)
    assert report.total.retries == 0
    assert report.total.requests == server.counts["requests"]
    assert len(report.first_failures) == report.total.failures
    assert {failure.kind for failure in report.first_failures} == {kind}
    with pytest.raises(AssertionError, match=f"{kind}: {report.total.failures} of"):
        report.check()
    report.check(failures=report.total.failures)


@pytest.mark.parametrize("fault", [resets, closes])
def test_a_reused_connection_that_is_closed_before_the_answer_costs_a_retry(
    tmp_path: Path, fault: Callable[[Server, ssl.SSLSocket, str], None]
) -> None:
    def behave(server: Server, connection: ssl.SSLSocket) -> None:
        first = True
        while (path := request_of(connection)) is not None:
            if not first and server.count("later") % 20 == 0:
                server.count("closed")
                fault(server, connection, path)
                return
            first = False
            connection.sendall(answer(path))

    with serving(tmp_path, behave) as server:
        report = loaded(server, "keepalive").check()
    assert report.total.retries == server.counts["closed"] > 0


def test_a_retry_that_fails_is_a_failure(tmp_path: Path) -> None:
    def behave(server: Server, connection: ssl.SSLSocket) -> None:
        """Closes each connection at its second request, and after the first hundred answers at its first."""
        for turn in range(2):
            path = request_of(connection)
            if path is None or turn or server.counts.get("answers", 0) >= 50:
                break
            server.count("answers")
            connection.sendall(answer(path))
        connection.close()

    with serving(tmp_path, behave) as server:
        report = loaded(server, "keepalive")
    assert report.total.failures == report.total.requests - 50, str(report)


def test_nobody_there_is_a_failure_of_every_request(tmp_path: Path) -> None:
    with serving(tmp_path, now_and_then(closes)) as server:
        pass
    with load_of(server, "https") as load:
        load.wait(50, 10)
    assert load.report().total.failures == load.report().total.requests >= 50
    assert "refused" in load.report().first_failures[0].error


def test_a_certificate_that_nobody_vouched_for_is_a_failure(tmp_path: Path) -> None:
    with serving(tmp_path, now_and_then(closes)) as server:
        server.ca.write_text(certificate(HOST).chain_pem)
        report = loaded(server, "https", 20)
    assert report.total.failures == report.total.requests
    assert "certificate refused" in report.first_failures[0].error


def test_silence_is_a_failure_on_a_reused_connection_too(tmp_path: Path) -> None:
    def behave(server: Server, connection: ssl.SSLSocket) -> None:
        while (path := request_of(connection)) is not None:
            if server.count("requests") == 60:
                threading.Event().wait(30)
            connection.sendall(answer(path))

    with serving(tmp_path, behave) as server, load_of(server, "keepalive", rate=20) as load:
        until(lambda: load.report().total.failures, 20, "the silent one fails", every=0.2)
    assert load.report().total.failures == 1
    assert load.report().total.retries == 0
    assert load.report().first_failures[0].error == "no answer within 10 s"


# -- websockets, and everything together on a real NGINX


@pytest.fixture
def demo() -> Iterator[tuple[str, int]]:
    """The upstream of load tests, as its own program."""
    host = loopback.address()
    port = loopback.port(host)
    process = subprocess.Popen([sys.executable, "-P", upstream.__file__, str(port)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"listens" in process.stdout.readline()
        yield "127.0.0.1", port
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert b"client 127.0.0.1" in output


@pytest.fixture
def nginx(demo: tuple[str, int]) -> Iterator["Site"]:
    running = Site(demo)
    try:
        yield running
    finally:
        running.close()


class Site(Running):
    """An NGINX that serves HOST from the upstream of load tests."""

    def __init__(self, demo: tuple[str, int]) -> None:
        super().__init__()
        pair = certificate(HOST)
        self.ca = self.base / "load-ca.pem"
        self.ca.write_text(pair.chain_pem)
        self.certificates = {"1-a": pair}
        self.demo = site(1, target=Target("http", *demo), ssl=True, tls={HOST: "1-a"})
        self.serve([self.demo], self.certificates)

    def load(self, rate: float = 60) -> Load:
        return Load([self.host], HOST, rate, self.ca, self.http, self.https)

    def restart(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)
        self.start()


def test_a_good_server_fails_nothing_and_all_kinds_are_asked(nginx: Site) -> None:
    with nginx.load() as load:
        load.wait(150, 20)
        load.phase("second")
        load.wait(150, 20)
        assert load.report().addresses[nginx.host].websocket_since is not None
    report = load.report().check()
    assert report.total.retries == 0
    assert all(figures.requests > 1 for figures in report.kinds.values()), str(report)
    assert report.phases["start"].requests + report.phases["second"].requests == report.total.requests
    assert report.addresses[nginx.host].longest_gap_s < 2
    assert report.websockets == []


def test_reloads_of_nginx_cost_retries_at_most_and_no_websocket(nginx: Site) -> None:
    with nginx.load(rate=60) as load:
        until(lambda: load.report().addresses[nginx.host].websocket_since, 10, "a websocket is open")
        for number in range(5):
            nginx.apply([nginx.demo, site(9, domains=(f"n{number}.example",))], nginx.certificates)
            load.wait(100, 20)
    report = load.report().check()
    assert report.total.requests > 400
    assert report.total.retries < 100
    assert report.websockets == []


def test_a_restart_of_nginx_is_seen(nginx: Site) -> None:
    with nginx.load(rate=60) as load:
        until(lambda: load.report().kinds["websocket"].requests, 10, "a websocket was answered")
        nginx.restart()
        load.wait(200, 20)
    report = load.report()
    assert report.total.failures > 0
    assert report.addresses[nginx.host].failures == report.total.failures
    assert [end.address for end in report.websockets] == [nginx.host]
    assert 0 < report.websockets[0].lived_s < report.seconds
    with pytest.raises(AssertionError, match="refused"):
        report.check()


def test_an_address_that_was_taken_out_may_go_and_come_back(nginx: Site) -> None:
    def fresh(report: Report) -> int:
        return report.total.requests - report.kinds["websocket"].requests

    with nginx.load(rate=60) as load:
        load.wait(100, 20)
        load.pause(nginx.host)
        before = load.report()
        nginx.restart()
        # But for the websocket, which is left to itself.
        assert fresh(load.report()) == fresh(before)
        load.resume(nginx.host)
        load.wait(100, 20)
    report = load.report().check()
    assert len(report.websockets) == 1


def test_the_generator_ends_with_the_one_that_started_it(nginx: Site) -> None:
    command = [sys.executable, "-m", "tests.support.load", "--host", HOST, "--ca", str(nginx.ca)]
    ports = ["--http-port", str(nginx.http), "--https-port", str(nginx.https)]
    with subprocess.Popen([*command, *ports, nginx.host], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True}
        process.stdin.close()
        report = Report.of(json.loads(process.stdout.readline()))
        assert process.wait(15) == 0
    assert report.total.failures == 0


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="No such file"), Load(["127.0.0.1"], HOST, 10, tmp_path / "ca.pem"):
        pass

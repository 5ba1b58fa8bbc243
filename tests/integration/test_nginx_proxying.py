"""What a client and an upstream see of a real NGINX between them."""

import json
import random
import socket
import ssl
import string
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import h2.connection
import h2.events
import pytest
import websockets.sync.client
import websockets.sync.server

from lyttle_ops.nginx.model import Target
from lyttle_ops.nginx.render import render_site
from lyttle_ops.nginx.syntax import quote
from tests.support import loopback
from tests.support.nginx import (
    THUMBPRINT,
    Handler,
    Running,
    certificate,
    client_context,
    name_server,
    parse,
    receive,
    site,
    target,
    upstream,
)


@pytest.fixture
def nginx() -> Iterator[Running]:
    running = Running()
    try:
        yield running
    finally:
        running.close()


def test_the_upstream_sees_the_client_and_not_what_the_client_claims(nginx: Running) -> None:
    with upstream() as server:
        nginx.serve([site(1, target=target(server))])
        status, _, body = nginx.get(
            "site1.example", "/a%2Fb//c?q=%20", X_Forwarded_For="6.6.6.6", X_Forwarded_Proto="https", Forwarded="for=1",
            X_Real_IP="6.6.6.6", Proxy="evil:1",
        )  # fmt: skip
    assert status == 200
    lines = body.decode().splitlines()
    assert lines[0] == "GET /a%2Fb//c?q=%20 HTTP/1.1"  # byte for byte
    assert "X-Forwarded-For: 127.0.0.1" in lines
    assert "X-Real-IP: 127.0.0.1" in lines
    assert "X-Forwarded-Proto: http" in lines
    assert "Host: site1.example" in lines
    assert not any(line.startswith(("Forwarded:", "Proxy:")) for line in lines)


def test_a_trusted_load_balancer_speaks_for_its_client() -> None:
    running = Running(TRUSTED_LOAD_BALANCERS="127.0.0.0/8")
    try:
        with upstream() as server:
            names = {"site1.example": "1-a"}
            running.serve([site(1, target=target(server), ssl=True, tls=names)], {"1-a": certificate("site1.example")})
            secure = {"X_Forwarded_For": "9.8.7.6, 127.0.0.2", "X_Forwarded_Proto": "https", "X_Forwarded_Port": "443"}
            _, _, body = running.get("site1.example", **secure)
            assert b"X-Forwarded-For: 9.8.7.6\n" in body
            assert b"X-Forwarded-Proto: https\n" in body
            assert b"X-Forwarded-Port: 443\n" in body
            # It ended TLS already: a redirect to HTTPS would be a loop. Plain HTTP before it is still redirected.
            assert running.get("site1.example", X_Forwarded_Proto="http")[0] == 308
            assert running.get("site1.example", "/.well-known/acme-challenge/t", X_Forwarded_Proto="http")[0] == 200
    finally:
        running.close()


def test_the_proxy_protocol_names_the_client() -> None:
    running = Running(PROXY_PROTOCOL="true", TRUSTED_LOAD_BALANCERS="127.0.0.0/8")
    try:
        with upstream() as server:
            running.serve([site(1, target=target(server))])
            with running.connect() as connection:
                connection.sendall(
                    b"PROXY TCP4 9.8.7.6 10.0.0.1 4711 80\r\nGET / HTTP/1.0\r\nHost: site1.example\r\n\r\n"
                )
                answer = receive(connection)
            assert b"X-Forwarded-For: 9.8.7.6\n" in answer
            assert running.nginx.live_release()  # its own socket needs no such line
    finally:
        running.close()


class Status(Handler):
    def handle_any(self) -> None:
        self.body()
        self.answer(int(self.path[1:]), b"as it is", X_Own="yes", Location="http://elsewhere/")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_methods_and_bodies_pass_unchanged(nginx: Running, method: str) -> None:
    body = b"" if method in ("GET", "HEAD") else bytes(range(256)) * 50
    with upstream() as server:
        nginx.serve([site(1, target=target(server))])
        status, _, answer = nginx.get("site1.example", "/x", method, body)
    assert status == 200
    if method != "HEAD":
        assert answer.startswith(f"{method} /x HTTP/1.1\n".encode())
        assert answer.endswith(body)


def test_status_codes_headers_and_bodies_of_the_upstream_pass_unchanged(nginx: Running) -> None:
    with upstream(Status) as server:
        nginx.serve([site(1, target=target(server))])
        for code in (200, 201, 301, 404, 418, 429, 500, 502, 503):
            status, headers, body = nginx.get("site1.example", f"/{code}")
            assert (status, body) == (code, b"as it is")
            assert headers["x-own"] == "yes"
            assert headers["location"] == "http://elsewhere/"


def test_the_path_of_a_target_is_a_prefix_and_the_rest_stays_as_it_was(nginx: Running) -> None:
    rewriting = "rewrite ^/old(.*)$ /new$1;"
    with upstream() as server, name_server(lambda name: str(server.server_address[0])) as dns:
        nginx.close()
        running = Running(NAME_SERVERS=dns)
        try:
            base = target(server, path="/base")
            named = target(server, path="/ba%20se", host="backend.test")
            running.serve(
                [
                    site(1, target=base),
                    site(2, target=named),
                    site(3, target=base, custom_code=rewriting),
                    site(4, target=named, custom_code=rewriting),
                    site(5, target=target(server), custom_code=rewriting),
                ]
            )

            def line(number: int, path: str) -> str:
                return running.get(f"site{number}.example", path)[2].decode().split(" HTTP")[0].removeprefix("GET ")

            assert line(1, "/a%2Fb?x=1") == "/base/a%2Fb?x=1"
            assert line(2, "/a%2Fb?x=1") == "/ba%20se/a%2Fb?x=1"
            assert line(3, "/old/a b".replace(" ", "%20") + "?x=%31") == "/base/new/a%20b?x=%31"
            assert line(3, "/other") == "/base/other"
            assert line(4, "/old/%3F?x=1") == "/ba%20se/new/%3F?x=1"
            assert line(5, "/old/x") == "/new/x"
            assert line(5, "/a%2Fb") == "/a%2Fb"
        finally:
            running.close()


class Slow(Handler):
    """Sends a chunk each time the test lets it."""

    gate = threading.Semaphore(0)

    def handle_any(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            assert Slow.gate.acquire(timeout=10)
            data = f"data: {number}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


def test_a_stream_arrives_as_it_is_sent(nginx: Running) -> None:
    with upstream(Slow) as server:
        nginx.serve([site(1, target=target(server))])
        with nginx.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: site1.example\r\n\r\n")
            received = b""
            for number in range(3):
                Slow.gate.release()  # the upstream has sent no more than this
                while f"data: {number}\n".encode() not in received:
                    received += connection.recv(4096)
            while not received.endswith(b"0\r\n\r\n"):
                received += connection.recv(4096)
    assert parse(received)[2] == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_an_upload_reaches_the_upstream_while_it_is_sent(nginx: Running) -> None:
    seen = threading.Event()

    class Upload(Handler):
        def handle_any(self) -> None:
            first = self.rfile.read(5)
            seen.set()
            self.answer(200, first + self.rfile.read(5))

    with upstream(Upload) as server:
        nginx.serve([site(1, target=target(server))])
        with nginx.connect() as connection:
            connection.sendall(b"POST / HTTP/1.0\r\nHost: site1.example\r\nContent-Length: 10\r\n\r\nfirst")
            assert seen.wait(10)
            connection.sendall(b"other")
            assert receive(connection).endswith(b"firstother")


def test_a_body_larger_than_the_site_allows_is_refused_and_zero_means_no_limit(nginx: Running) -> None:
    with upstream() as server:
        nginx.serve(
            [
                site(1, target=target(server), client_max_body_size=1000),
                site(2, target=target(server), client_max_body_size=0),
            ]
        )
        assert nginx.get("site1.example", method="POST", body=b"x" * 1000)[0] == 200
        assert nginx.get("site1.example", method="POST", body=b"x" * 1001)[0] == 413
        assert nginx.get("site2.example", method="POST", body=b"x" * 2_000_000)[0] == 200


@pytest.mark.parametrize("tls", [False, True])
def test_websockets_pass_in_both_directions(nginx: Running, tls: bool) -> None:
    def echo(peer: websockets.sync.server.ServerConnection) -> None:
        for message in peer:
            peer.send(message)

    host = loopback.address()
    port = loopback.port(host)
    with websockets.sync.server.serve(echo, host, port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            sites = [
                site(1, target=Target("http", host, port), ssl=tls, tls={"site1.example": "1-a"} if tls else {}),
                site(2, target=Target("http", host, port), websocket=False),
            ]
            nginx.serve(sites, {"1-a": certificate("site1.example")})
            with (
                nginx.connect("site1.example" if tls else None) as connection,
                websockets.sync.client.connect("ws://site1.example/", sock=connection, close_timeout=2) as client,
            ):
                for message in ("hello", b"\x00\xff" * 5000):
                    client.send(message)
                    assert client.recv(10) == message
            upgrade = {"Upgrade": "websocket", "Sec_WebSocket_Key": "x" * 24, "Sec_WebSocket_Version": "13"}
            assert nginx.get("site2.example", **upgrade)[0] == 426  # the upstream was asked for no upgrade
        finally:
            server.shutdown()
            thread.join()


def test_a_name_is_resolved_at_run_time_and_one_that_is_not_there_costs_its_site_a_502() -> None:
    known: dict[str, str] = {}
    with upstream() as server, name_server(known.get) as dns:
        running = Running(NAME_SERVERS=dns)
        try:
            sites = [site(1, target=target(server, host="later.test")), site(2, target=target(server))]
            applied = running.serve(sites)
            assert applied.quarantined == {}
            assert running.get("site1.example")[0] == 502
            assert running.get("site2.example")[0] == 200
            known["later.test"] = str(server.server_address[0])
            assert running.get("site1.example")[0] == 200
            assert not running.apply(sites).reloaded
        finally:
            running.close()


def test_a_site_that_leads_to_itself_ends_in_508_and_not_in_a_flood(nginx: Running) -> None:
    nginx.serve([site(1, target=Target("http", nginx.host, nginx.http), custom_code="proxy_set_header Host $host;")])
    assert nginx.get("site1.example")[0] == 508
    assert nginx.access_log.read_text().count("\n") <= 7


def test_addresses_and_localhost_keep_their_connections(nginx: Running) -> None:
    class Peer(Handler):
        def handle_any(self) -> None:
            self.answer(200, str(self.client_address[1]).encode())

    with upstream(Peer) as server, upstream(Peer, host="127.0.0.1") as local:
        nginx.serve(
            [
                site(1, target=target(server), custom_code="location /x { return 204; }"),
                site(2, target=target(local, host="localhost")),
            ]
        )
        for name in ("site1.example", "site2.example"):
            peers = {nginx.get(name)[2] for _ in range(8)}
            assert len(peers) <= len(nginx.workers())


def test_a_tls_upstream_is_verified_unless_told_otherwise() -> None:
    own = certificate("backend.test")
    with (
        upstream(tls=own) as server,
        name_server(lambda name: str(server.server_address[0])) as dns,
    ):
        running = Running(NAME_SERVERS=dns)
        try:
            trusted = running.base / "roots.pem"
            trusted.write_text(own.chain_pem)
            there = target(server, "https", host="backend.test")
            other = target(server, "https", host="other.test")
            sites = [
                site(1, target=there),
                site(2, target=there, verify_upstream_tls=False),
                site(3, target=other),
                site(4, target=other, custom_code=f"location / {{ proxy_pass https://backend.test:{there.port}; }}"),
            ]
            running.serve(sites)
            assert [running.get(f"site{number}.example")[0] for number in (1, 2, 3)] == [502, 200, 502]
            # The roots of this test instead of the machine's.
            running.nginx.layout = replace(running.nginx.layout, trusted_certificates=str(trusted))
            assert running.apply(sites).reloaded
            assert [running.get(f"site{number}.example")[0] for number in (1, 2, 3, 4)] == [200, 200, 502, 200]
        finally:
            running.close()


def test_redirects_keep_path_and_query(nginx: Running) -> None:
    nginx.serve(
        [
            site(1, kind="redirect", target=Target("https", "new.example", 443), redirect_code=301),
            site(2, kind="redirect", target=Target("http", "new.example", 8080, "/base")),
        ]
    )
    status, headers, _ = nginx.get("site1.example", "/a%20b?c=d")
    assert (status, headers["location"]) == (301, "https://new.example/a%20b?c=d")
    status, headers, _ = nginx.get("site2.example", "/a")
    assert (status, headers["location"]) == (308, "http://new.example:8080/base/a")


def test_https_serves_http2_and_redirects_http_and_says_hsts_only_when_asked(nginx: Running) -> None:
    with upstream() as server:
        sites = [
            site(1, target=target(server), ssl=True, hsts=True, tls={"site1.example": "1-a"},
                 custom_code="location /own { add_header X-Own yes; }"),
            site(2, target=target(server), ssl=True, tls={"site2.example": "2-a"}),
            site(3, target=target(server), ssl=True),
        ]  # fmt: skip
        nginx.serve(sites, {"1-a": certificate("site1.example"), "2-a": certificate("site2.example")})
        status, headers, _ = nginx.get("site1.example", "/x?y")
        assert (status, headers["location"]) == (308, f"https://site1.example:{nginx.https}/x?y")
        assert nginx.get("site1.example", tls=True)[1]["strict-transport-security"] == "max-age=31536000"
        own = nginx.get("site1.example", "/own", tls=True)[1]
        assert own["x-own"] == "yes"
        assert "strict-transport-security" in own
        assert "strict-transport-security" not in nginx.get("site2.example", tls=True)[1]
        assert nginx.get("site3.example")[0] == 200  # HTTP is served while the certificate is pending

        context = client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection((nginx.host, nginx.https)) as connection,
            context.wrap_socket(connection, server_hostname="site2.example") as secured,
        ):
            assert secured.selected_alpn_protocol() == "h2"
            assert secured.version() == "TLSv1.3"


def test_old_tls_and_unknown_names_are_rejected_in_the_handshake(nginx: Running) -> None:
    nginx.serve([site(1, ssl=True, tls={"site1.example": "1-a"}), site(2)], {"1-a": certificate("site1.example")})
    for name in ("unknown.example", "site2.example"):
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"), nginx.connect(name):
            pass
    with (
        socket.create_connection((nginx.host, nginx.https)) as connection,
        pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"),
    ):
        client_context().wrap_socket(connection)  # no name at all
    old = client_context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are the point
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((nginx.host, nginx.https)) as connection,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(connection, server_hostname="site1.example")


def test_requests_for_no_site_learn_nothing(nginx: Running) -> None:
    nginx.serve([site(1, ssl=True, tls={"site1.example": "1-a"})], {"1-a": certificate("site1.example")})
    for path in ("/", "/release", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/a.b", "/%2e%2e/etc"):
        status, headers, body = nginx.get("unknown.example", path)
        assert status in (400, 404)
        assert headers["server"] == "nginx"
        assert body == b"not found\n" or status == 400
    # Only the instance's own path says who answers, and only for no site.
    status, headers, _ = nginx.get("unknown.example", "/.well-known/lyttle-ops")
    assert headers["x-lyttle-instance"] == nginx.nginx.layout.instance_id
    assert headers["x-lyttle-release"] == nginx.nginx.live_release()
    assert not any(name.startswith("x-lyttle") for name in nginx.get("site1.example")[1])
    # A connection for one name is no way to another.
    with nginx.connect("site1.example") as connection:
        connection.sendall(b"GET / HTTP/1.0\r\nHost: unknown.example\r\n\r\n")
        assert receive(connection).startswith(b"HTTP/1.1 421 ")


def test_acme_challenges_are_answered_on_every_ssl_site_and_passed_on_by_others(nginx: Running) -> None:
    answer = f"tok_EN-1.{THUMBPRINT}".encode()
    codes = [
        "return 301 https://elsewhere/;",
        "rewrite ^ /gone last; location /gone { return 410; }",
        "deny all;",
        "location ~ . { return 403; }",
        "location ^~ /.well-known/ { return 403; }",
        "location / { return 403; }",
        "auth_request /auth; location = /auth { internal; return 401; }",
        "set $a b; if ($uri ~ .) { return 403; }",
        "error_page 404 /x; location = /x { return 200 captured; }",
        'default_type text/html; satisfy any; add_header A b always; expires 1d;',
    ]  # fmt: skip
    with upstream() as server:
        sites = [site(1, target=target(server)), site(2, target=target(server), ssl=True)]
        sites += [site(10 + n, target=target(server), ssl=True, custom_code=code) for n, code in enumerate(codes)]
        sites += [
            site(30, target=target(server), ssl=True, tls={"site30.example": "1-a"}, custom_code=codes[0]),
            site(31, ssl=True, kind="redirect"),
        ]
        applied = nginx.serve(sites, {"1-a": certificate("site30.example")})
        assert applied.quarantined == {}
        for number in [2, 30, 31, *range(10, 10 + len(codes))]:
            status, headers, body = nginx.get(f"site{number}.example", "/.well-known/acme-challenge/tok_EN-1")
            assert (status, body) == (200, answer), number
            assert headers["content-type"] == "text/plain", number
        assert nginx.get("unknown.example", "/.well-known/acme-challenge/tok_EN-1")[2] == answer
        passed = nginx.get("site1.example", "/.well-known/acme-challenge/tok_EN-1")[2]
        assert passed.startswith(b"GET /.well-known/acme-challenge/tok_EN-1 ")
        # What else the code says still holds.
        assert nginx.get("site10.example")[0] == 301
        assert nginx.get("site11.example")[0] == 410
        assert nginx.get("site12.example")[0] == 403


def test_custom_locations_lead_to_the_site_or_where_they_say(nginx: Running) -> None:
    with upstream() as server, upstream() as second:
        host, port = second.server_address[:2]
        code = f"""
            proxy_set_header X-All yes;
            location /same {{ proxy_set_header X-One "a $host"; add_header X-Two "b\\"c"; }}
            location /api/ {{ proxy_pass http://{host}:{port}/v1/; }}
            location /raw/ {{ proxy_pass http://{host}:{port}; }}
            location = /local {{ proxy_pass http://localhost:{port}; }}
            location ~ ^/(a|b)$ {{ return 200 "it's $1;\\n"; }}
            location /outer {{ location /outer/inner {{ proxy_set_header X-In 1; }} }}
            if ($arg_no = "1 2") {{ return 402; }}
        """
        applied = nginx.serve([site(1, target=target(server), custom_code=code)])
        assert applied.quarantined == {}

        def lines(path: str) -> list[str]:
            return nginx.get("site1.example", path)[2].decode().splitlines()

        assert {"X-All: yes", "Host: site1.example"} <= set(lines("/"))
        assert {"GET /same HTTP/1.1", "X-All: yes", "X-One: a site1.example", "Host: site1.example"} <= set(
            lines("/same")
        )
        assert nginx.get("site1.example", "/same")[1]["x-two"] == 'b"c'
        assert lines("/api/x%20y?z")[0] == "GET /v1/x%20y?z HTTP/1.1"
        assert lines("/raw/x%2F?z")[0] == "GET /raw/x%2F?z HTTP/1.1"
        assert nginx.get("site1.example", "/local")[0] == 502  # nobody listens there; it was asked all the same
        assert lines("/a") == ["it's a;"]
        assert {"X-In: 1", "X-All: yes", "X-Real-IP: 127.0.0.1"} <= set(lines("/outer/inner"))
        assert nginx.get("site1.example", "/?no=1+2")[0] == 200
        assert nginx.get("site1.example", "/?no=1 2".replace(" ", "%20"))[0] == 200  # NGINX does not decode arguments


def test_a_redirect_can_pass_one_location_on(nginx: Running) -> None:
    with upstream() as server:
        host, port = server.server_address[:2]
        code = f"location /api/ {{ proxy_pass http://{host}:{port}; }} location /own {{ return 418; }}"
        nginx.serve([site(1, kind="redirect", target=Target("https", "new.example", 443), custom_code=code)])
        assert b"\nHost: site1.example\n" in nginx.get("site1.example", "/api/x")[2]
        assert nginx.get("site1.example", "/own")[0] == 418
        assert nginx.get("site1.example", "/x")[1]["location"] == "https://new.example/x"


def test_http2_requests_reach_the_upstream_like_any_other(nginx: Running) -> None:
    with upstream() as server:
        sites = [site(1, target=target(server), ssl=True, tls={"site1.example": "1-a"})]
        nginx.serve(sites, {"1-a": certificate("site1.example")})
        context = client_context()
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((nginx.host, nginx.https), timeout=10) as connection,
            context.wrap_socket(connection, server_hostname="site1.example") as secured,
        ):
            peer = h2.connection.H2Connection()
            peer.initiate_connection()
            head = {
                ":method": "POST",
                ":authority": f"site1.example:{nginx.https}",
                ":scheme": "https",
                ":path": "/x?y",
            }
            peer.send_headers(1, list(head.items()))
            peer.send_data(1, b"the body", end_stream=True)
            body, ended = b"", False
            while not ended:
                secured.sendall(peer.data_to_send())
                for event in peer.receive_data(secured.recv(65536)):
                    if isinstance(event, h2.events.DataReceived):
                        body += event.data
                    ended = ended or isinstance(event, h2.events.StreamEnded)
    lines = body.decode().splitlines()
    assert lines[0] == "POST /x?y HTTP/1.1"
    assert f"Host: site1.example:{nginx.https}" in lines
    assert "X-Forwarded-Proto: https" in lines
    assert lines[-1] == "the body"


def test_nginx_reads_back_exactly_what_was_quoted(nginx: Running) -> None:
    alphabet = [
        *string.printable[:-2],
        "é",
        "中",
        "\U0001f600",
        "\\",
        '"',
        "'",
        "{",
        "}",
        ";",
        "#",
        " ",
        "\n",
        "\t",
        "\r",
    ]
    alphabet.remove("$")  # NGINX knows no way to write it
    chance = random.Random(20)
    texts = ["".join(chance.choices(alphabet, k=chance.randrange(1, 30))) for _ in range(400)]
    texts += ["\\", "\\\\", '\\"', "\\n", "\\x", '"', "'", "}", ";", "# no comment", " ", "\n", "\\\n", "a\\"]
    code = "".join(f'location = /{n} {{ return 200 "{n}"; }}' for n in range(len(texts)))
    given = site(1, custom_code=code)
    text = render_site(given, replace(nginx.nginx.layout, thumbprint=THUMBPRINT))
    for number, content in enumerate(texts):
        text = text.replace(f"return 200 {number};", f"return 200 {quote(content)};")
    # The quoted texts stand where custom code stands, in a release of their own.
    nginx.apply([given])
    (nginx.folder / "live" / "sites" / "1.conf").write_text(text, "utf-8")
    nginx.start()
    with nginx.connect() as connection:
        file = connection.makefile("rb")
        for number, content in enumerate(texts):
            connection.sendall(f"GET /{number} HTTP/1.1\r\nHost: site1.example\r\n\r\n".encode())
            length = 0
            while (line := file.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert file.read(length).decode() == content


def test_the_access_log_is_json_in_utc_without_the_query(nginx: Running) -> None:
    with upstream() as server:
        nginx.serve([site(1, target=target(server))])
        nginx.get("site1.example", '/a"b?token=secret', User_Agent='"\\')
        deadline = time.monotonic() + 5
        while not nginx.access_log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
    entry: dict[str, Any] = json.loads(nginx.access_log.read_text().splitlines()[0])
    assert {"time", "level", "process", "message"} <= set(entry)
    assert (entry["process"], entry["path"], entry["status"]) == ("nginx", '/a"b', "200")
    assert entry["time"].endswith("+00:00")
    assert "secret" not in json.dumps(entry)

"""One shape for every error, authentication before everything else, and a database that is away."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from lyttle_ops.local.postgres import PostgresServer
from tests.support import wait
from tests.support.api import Client, application, code_of, fields_of, shared_database
from webapi.bodies import MOST_BYTES
from webapi.tokens import PUBLIC

ENTRY = {"domains": "example.com", "proxy_pass_host": "http://backend:8080"}


@pytest.fixture(scope="module")
def shared_url(postgres: PostgresServer, template: str) -> Iterator[str]:
    with shared_database(postgres, template) as url:
        yield url


@pytest.fixture
def app(shared_url: str) -> Iterator[Any]:
    with application(shared_url) as app:
        yield app


@pytest.fixture(scope="module")
def token(shared_url: str) -> str:
    with application(shared_url) as app:
        return Client(app).log_in().access_token


@pytest.fixture
def client(app: Any, token: str) -> Client:
    client = Client(app)
    client.access_token = token
    return client


def routes(app: Any) -> list[tuple[str, str, str]]:
    """Method, path with ids filled in, endpoint."""
    found = []
    for rule in app.url_map.iter_rules():
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            path = rule.rule.replace("<int:proxy_id>", "5").replace("<int:certificate_id>", "5")
            found.append((method, path.replace("<path:filename>", "x"), rule.endpoint))
    return found


def test_every_endpoint_that_is_not_public_asks_for_a_token_first(app: Any) -> None:
    """Before the id is looked up, the body read or its type checked."""
    client = Client(app)
    asked = 0
    for method, path, endpoint in routes(app):
        if endpoint in PUBLIC:
            continue
        for options in ({}, {"data": b"{", "content_type": "application/json"}, {"data": b"x", "content_type": "a/b"}):
            answer = client.request(method, path, **options)
            assert (answer.status_code, code_of(answer)) == (401, "token_missing"), (method, path)
            asked += 1
    assert asked > 40
    assert client.post("/proxy", {"x": "y" * (MOST_BYTES + 1)}).status_code == 401


def test_what_is_public_is_a_short_list(app: Any) -> None:
    """Whoever adds an endpoint without a token has to say so here."""
    paths = {path for _, path, endpoint in routes(app) if endpoint in PUBLIC and not path.startswith("/openapi")}
    assert paths == {"/auth/login", "/health/live", "/health/ready", "/metrics"}
    assert {endpoint for _, _, endpoint in routes(app)} >= PUBLIC


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("GET", "/proxy/", {}, 404, "not_found"),
        ("GET", "/proxy/x", {}, 404, "not_found"),
        ("GET", "/proxy/-1", {}, 404, "not_found"),
        ("GET", "/proxy/5", {}, 404, "proxy_not_found"),
        ("GET", f"/proxy/{10**30}", {}, 404, "proxy_not_found"),
        ("DELETE", "/proxy/5", {}, 404, "proxy_not_found"),
        ("PATCH", "/proxy/5", {"json": {}}, 404, "proxy_not_found"),
        ("GET", "/certificates/5", {}, 404, "certificate_not_found"),
        ("POST", "/certificates/5/renew", {}, 404, "certificate_not_found"),
        ("GET", f"/certificates/{10**30}", {}, 404, "certificate_not_found"),
        ("PUT", "/proxy", {"json": ENTRY}, 405, "method_not_allowed"),
        ("POST", "/proxy/5", {"json": ENTRY}, 405, "method_not_allowed"),
        ("POST", "/proxy", {"data": b"{", "content_type": "application/json"}, 400, "bad_request"),
        ("POST", "/proxy", {"data": b"", "content_type": "application/json"}, 400, "bad_request"),
        ("POST", "/proxy", {"data": b"\xff", "content_type": "application/json"}, 400, "bad_request"),
        ("POST", "/proxy", {"data": b"[" * 100_000, "content_type": "application/json"}, 400, "bad_request"),
        ("POST", "/proxy", {"data": b"1" * 9_000, "content_type": "application/json"}, 400, "bad_request"),
        ("POST", "/proxy", {"data": b"a=b", "content_type": "text/plain"}, 415, "unsupported_media_type"),
        ("POST", "/proxy", {"data": {"a": "b"}}, 415, "unsupported_media_type"),
        ("POST", "/proxy", {}, 415, "unsupported_media_type"),
        ("PATCH", "/proxy/5", {"data": b"{}"}, 415, "unsupported_media_type"),
        ("POST", "/proxy", {"json": {**ENTRY, "x": "y" * MOST_BYTES}}, 413, "body_too_large"),
        ("POST", "/proxy", {"json": []}, 422, "validation_failed"),
        ("POST", "/proxy", {"data": b"null", "content_type": "application/json"}, 422, "validation_failed"),
        ("POST", "/proxy", {"json": json.dumps(ENTRY)}, 422, "validation_failed"),  # JSON inside a JSON string
        ("POST", "/proxy", {"json": {}}, 422, "validation_failed"),
        ("GET", "/proxy?limit=0", {}, 422, "validation_failed"),
        ("GET", "/proxy?limit=x", {}, 422, "validation_failed"),
        ("GET", "/proxy?offset=-1", {}, 422, "validation_failed"),
        ("GET", "/proxy?offset=99999999999999999999", {}, 422, "validation_failed"),
        ("GET", "/proxy?domain=a%00b", {}, 422, "validation_failed"),
        ("GET", "/proxy?color=blue", {}, 422, "validation_failed"),
    ],
)  # fmt: skip
def test_an_error_has_its_status_and_code(
    client: Client, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    """The client of these tests checks the shape of each error."""
    answer = client.request(method, path, **options)
    assert (answer.status_code, code_of(answer)) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "data", "words"),
    [
        ("POST", "/proxy", b'{"domains": "a",\n  ssl: true}', "line 2, column 3: Expecting property name"),
        ("POST", "/proxy", b"", "the body is empty"),
        ("POST", "/proxy", b'{"a": "\xff"}', "its byte 8 is not UTF-8"),
        ("POST", "/proxy", b"1" * 9_000, "too many digits"),
        ("POST", "/proxy", b"x" * (MOST_BYTES + 1), "the limit is 1 MB"),
        ("POST", "/proxy", b'{"domains": 5, "proxy_pass_host": "http://a"}', "not valid: domains"),
        ("GET", "/proxy/x", b"", "there is nothing at /proxy/x: an id is a whole number, as in /proxy/5"),
        ("GET", "/certificates/1.5", b"", "an id is a whole number, as in /certificates/5"),
        ("POST", "/certificates/-1/renew", b"", "an id is a whole number, as in /certificates/5/renew"),
        ("GET", "/nowhere", b"", "there is nothing at /nowhere; /openapi lists what there is"),
        ("GET", "/proxy/", b"", "there is nothing at /proxy/; /openapi"),
    ],
)
def test_an_error_says_what_is_wrong_in_plain_words(
    client: Client, method: str, path: str, data: bytes, words: str
) -> None:
    answer = client.request(method, path, data=data, content_type="application/json")
    assert words in answer.json["error"]["message"]


def test_a_405_says_what_is_allowed(client: Client) -> None:
    allowed = client.request("PUT", "/proxy").headers["Allow"]
    assert {"GET", "POST"} <= {method.strip() for method in allowed.split(",")}


def test_a_422_names_every_field_by_its_path(client: Client) -> None:
    body = {"domains": ["ok.example.com", "*.example.com"], "proxy_pass_host": "http://u@b", "ssl": "true", "x": 1}
    fields = fields_of(client.post("/proxy", body))
    assert set(fields) == {"domains.1", "proxy_pass_host", "ssl", "x"}
    assert "wildcard" in fields["domains.1"]
    assert "accepted:" in fields["proxy_pass_host"]


def test_a_422_of_the_whole_entry_names_the_field_it_is_about(client: Client) -> None:
    assert set(fields_of(client.post("/proxy", {**ENTRY, "domains": "intranet", "ssl": True}))) == {"domains"}


def test_an_unexpected_error_is_a_500_that_tells_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("webapi.proxies.proxies.view_of_proxy", fail)
    answer = client.get("/proxy/5")
    assert (answer.status_code, code_of(answer)) == (500, "internal_error")
    assert "a secret" not in answer.text


def test_every_answer_is_neither_kept_nor_framed(client: Client) -> None:
    for answer in (client.get("/auth/me"), client.get("/nowhere"), client.get("/health/live"), client.get("/openapi")):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


def test_a_session_that_the_database_ended_costs_no_request(client: Client, shared_url: str) -> None:
    """The pool looks at a connection's socket before it hands the connection out."""
    assert client.get("/auth/me").status_code == 200
    with psycopg.connect(shared_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )
        others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        wait.until(lambda: connection.execute(others).fetchone() is None)
    assert client.get("/auth/me").status_code == 200


def test_a_database_that_refuses_connections_comes_back_without_a_hand(
    client: Client, shared_url: str, postgres: PostgresServer
) -> None:
    name = shared_url.rpartition("/")[2]
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        assert client.get("/auth/me").status_code == 503
        assert client.get("/health/live").status_code == 200
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    wait.until(lambda: client.get("/auth/me").status_code == 200, 15)

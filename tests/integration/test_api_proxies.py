"""Entries over HTTP: the whole life of one, conflicts between nodes, and what each request costs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lyttle_ops.db import Database
from lyttle_ops.proxies import parse_target, write_target
from lyttle_ops.proxies.domains import normalise_domain
from tests.support.api import Client, add_admin, application, code_of, fields_of

ENTRY = {"proxy_pass_host": "http://backend:8080", "domains": "test.example.com", "ssl": True}


@pytest.fixture
def app(database: Database, database_url: str) -> Iterator[Any]:
    add_admin(database)
    with application(database_url) as app:
        yield app


@pytest.fixture
def client(app: Any) -> Client:
    return Client(app).log_in()


def test_an_entry_lives_from_post_to_delete(client: Client) -> None:
    answer = client.post("/proxy", ENTRY)
    assert answer.status_code == 201
    entry = answer.json
    assert entry.pop("warnings") == []
    assert answer.headers["Location"] == f"/proxy/{entry['id']}"
    assert entry["domains"] == ["test.example.com"]
    assert entry["certificate"]["state"] == "pending"
    assert entry["live"] == {"state": "waiting", "nodes": 0, "of": 0, "waiting": [], "errors": {}}
    assert entry["created_at"].endswith("Z")
    assert client.get(answer.headers["Location"]).json == entry

    changed = client.patch(f"/proxy/{entry['id']}", {"ssl": False, "read_timeout": 99}).json
    assert (changed["ssl"], changed["read_timeout"], changed["certificate"]) == (False, 99, None)
    assert changed["revision"] > entry["revision"]
    assert changed["proxy_pass_host"] == entry["proxy_pass_host"]

    assert client.delete(f"/proxy/{entry['id']}").status_code == 204
    assert client.get(f"/proxy/{entry['id']}").status_code == 404
    assert client.delete(f"/proxy/{entry['id']}").status_code == 404


def test_what_has_no_effect_without_ssl_is_saved_with_a_warning(client: Client) -> None:
    plain = {**ENTRY, "ssl": False}
    assert client.post("/proxy", plain).json["warnings"] == []  # force_https is true by default; nobody asked for it
    asked = client.post("/proxy", {**plain, "domains": "b.example.com", "hsts": True, "force_https": True})
    assert asked.status_code == 201
    assert [warning.split()[0] for warning in asked.json["warnings"]] == ["hsts", "force_https"]
    path = asked.headers["Location"]
    assert [warning.split()[0] for warning in client.patch(path, {"read_timeout": 9}).json["warnings"]] == ["hsts"]
    assert client.patch(path, {"ssl": True, "force_https": True}).json["warnings"] == []
    assert [warning.split()[0] for warning in client.patch(path, {"ssl": False}).json["warnings"]] == ["hsts"]
    assert "warnings" not in client.get(path).json


@pytest.mark.parametrize("domains", ["b.example.com;A.example.com.", ["b.example.com", "a.example.com"]])
def test_domains_come_as_a_string_a_semicolon_list_or_a_json_list(client: Client, domains: Any) -> None:
    answer = client.post("/proxy", {**ENTRY, "domains": domains})
    assert answer.json["domains"] == ["a.example.com", "b.example.com"]


def test_a_taken_domain_is_a_conflict_that_names_it_and_its_entry(client: Client) -> None:
    first = client.post("/proxy", ENTRY).json["id"]
    answer = client.post("/proxy", {**ENTRY, "domains": "free.example.com;TEST.example.com"})
    assert (answer.status_code, code_of(answer)) == (409, "domain_taken")
    assert fields_of(answer) == {"domains": f"test.example.com belongs to proxy entry {first}"}
    second = client.post("/proxy", {**ENTRY, "domains": "free.example.com"}).json["id"]
    answer = client.patch(f"/proxy/{second}", {"domains": "test.example.com"})
    assert (answer.status_code, code_of(answer)) == (409, "domain_taken")


def test_one_domain_posted_to_three_nodes_at_once_is_one_entry_and_two_conflicts(
    database: Database, database_url: str
) -> None:
    add_admin(database)
    with ExitStack() as stack:
        apps = [stack.enter_context(application(database_url, NODE_NAME=f"node{number}")) for number in range(3)]
        clients = [Client(app).log_in() for app in apps]
        for attempt in range(5):
            entry = {**ENTRY, "domains": f"race{attempt}.example.com"}
            with ThreadPoolExecutor(3) as pool:
                answers = list(pool.map(lambda client, body=entry: client.post("/proxy", body), clients))
            assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
            winner = next(answer.json["id"] for answer in answers if answer.status_code == 201)
            for answer in answers:
                if answer.status_code == 409:
                    assert str(winner) in fields_of(answer)["domains"]
        assert clients[0].get("/proxy").json["total"] == 5


def test_the_list_is_paged_and_filtered(client: Client) -> None:
    for number in range(3):
        client.post("/proxy", {**ENTRY, "domains": f"n{number}.example.com"})
    answer = client.get("/proxy?limit=2&offset=1").json
    assert [entry["domains"] for entry in answer["items"]] == [["n1.example.com"], ["n2.example.com"]]
    assert (answer["total"], answer["limit"], answer["offset"]) == (3, 2, 1)
    answer = client.get("/proxy?domain=N2.example.com.").json
    assert [entry["domains"] for entry in answer["items"]] == [["n2.example.com"]]
    assert client.get("/proxy?domain=none.example.com").json["total"] == 0
    assert client.get("/proxy?offset=99").json == {"items": [], "total": 3, "limit": 100, "offset": 99}


@pytest.mark.parametrize("path", ["/proxy", "/proxy/1", "/certificates", "/cluster/leader", "/auth/me"])
def test_a_get_costs_at_most_three_statements(client: Client, app: Any, monkeypatch: Any, path: str) -> None:
    """The session, and what was asked for; no BEGIN and no COMMIT."""
    client.post("/proxy", ENTRY)
    statements = []
    execute = psycopg.Connection.execute

    def counted(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        statements.append(query)
        return execute(self, query, *arguments, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", counted)
    monkeypatch.setattr(psycopg.Connection, "transaction", lambda *_: pytest.fail("a GET began a transaction"))
    assert client.get(path).status_code == 200
    assert len(statements) <= 3, statements


def test_validate_takes_a_good_entry_and_saves_nothing(client: Client) -> None:
    answer = client.post("/proxy/validate", {**ENTRY, "nginx_custom_code": "add_header X-Test yes;"})
    assert (answer.status_code, answer.json) == (200, {"valid": True, "errors": []})
    assert client.get("/proxy").json["total"] == 0


def test_validate_tells_every_wrong_field_with_200(client: Client) -> None:
    answer = client.post("/proxy/validate", {"domains": "*.example.com", "ssl": "yes"})
    assert answer.status_code == 200
    assert answer.json["valid"] is False
    assert {error["field"] for error in answer.json["errors"]} == {"domains.0", "proxy_pass_host", "ssl"}


def test_validate_tells_a_taken_domain_unless_the_entry_itself_has_it(client: Client) -> None:
    number = client.post("/proxy", ENTRY).json["id"]
    answer = client.post("/proxy/validate", ENTRY).json
    assert [error["field"] for error in answer["errors"]] == ["domains"]
    assert client.post(f"/proxy/validate?id={number}", ENTRY).json["valid"] is True


def test_validate_answers_in_nginx_s_own_words(client: Client) -> None:
    """The allow-list knows the directive, only NGINX knows that its value is nonsense."""
    answer = client.post("/proxy/validate", {**ENTRY, "nginx_custom_code": "proxy_read_timeout banana;"}).json
    assert answer["valid"] is False
    assert [error["field"] for error in answer["errors"]] == ["nginx_custom_code"]
    assert "proxy_read_timeout" in answer["errors"][0]["message"]
    assert "invalid value" in answer["errors"][0]["message"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    domains=st.text(max_size=40)
    | st.lists(st.text(max_size=20), max_size=3)
    | st.from_regex(r"\A[a-zA-Z0-9.*;_ -]{1,40}\Z"),
    target=st.text(max_size=40) | st.from_regex(r"\Ahttps?://[a-z0-9.:\[\]_%@-]{0,20}(/[ -~]{0,15})?\Z"),
)
def test_whatever_is_posted_is_refused_or_a_value_that_stays_itself(client: Client, domains: Any, target: str) -> None:
    """No input ends in a 5xx, and what is stored is a normal form that NGINX reads as one word."""
    answer = client.post("/proxy", {"domains": domains, "proxy_pass_host": target})
    assert answer.status_code in (201, 409, 422)
    if answer.status_code != 201:
        return
    entry = answer.json
    assert [normalise_domain(domain) for domain in entry["domains"]] == entry["domains"]
    assert write_target(parse_target(entry["proxy_pass_host"])) == entry["proxy_pass_host"]
    assert not set(entry["proxy_pass_host"] + "".join(entry["domains"])) & set(" \t\r\n;{}$\"'\\#")
    same = {"domains": entry["domains"], "proxy_pass_host": entry["proxy_pass_host"]}
    assert client.patch(f"/proxy/{entry['id']}", same).json["revision"] == entry["revision"]

"""The OpenAPI document is whole and true: every route, every status, every model."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lyttle_ops.db import Database
from tests.support.api import Client, add_admin, application
from webapi import auth, certificates, cluster, health, proxies
from webapi.bodies import WITH_BODY
from webapi.tokens import PUBLIC, REFRESH

METHODS = {"get", "post", "patch", "put", "delete"}


@pytest.fixture
def app(database: Database, database_url: str, tmp_path: Path) -> Iterator[Any]:
    add_admin(database)
    with application(database_url, tmp_path) as app:
        yield app


@pytest.fixture
def document(app: Any) -> dict[str, Any]:
    answer = Client(app).get("/openapi/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield method, path, operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_every_route_of_the_api_is_in_the_document_and_no_other(app: Any, document: dict[str, Any]) -> None:
    real = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith("/openapi")
    }
    assert {(method, path) for method, path, _ in operations(document)} == real
    assert document["openapi"] == "3.1.0"


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_no_two_models_share_a_name() -> None:
    """The second would silently take the first one's place in the document."""
    names: dict[str, type] = {}
    for module in (auth, certificates, cluster, health, proxies):
        for name, model in inspect.getmembers(module, inspect.isclass):
            if issubclass(model, BaseModel) and model is not BaseModel:
                assert names.setdefault(name, model) is model, name


def test_every_operation_says_what_it_does_under_an_id_of_its_own(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] and operation["tags"] for _, _, operation in operations(document))


def test_security_and_bodies_are_those_that_are_enforced(app: Any, document: dict[str, Any]) -> None:
    endpoints = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)): rule.endpoint
        for rule in app.url_map.iter_rules()
        for method in rule.methods
    }
    schemes = document["components"]["securitySchemes"]
    for method, path, operation in operations(document):
        endpoint = endpoints[method, path]
        expected = None if endpoint in PUBLIC else [{"refresh_token" if endpoint == REFRESH else "access_token": []}]
        assert operation.get("security") == expected, path
        assert all(scheme in schemes for entry in expected or [] for scheme in entry)
        assert ("requestBody" in operation) == (endpoint in WITH_BODY), path
        documented = set(operation["responses"])
        if expected:
            assert {"401", "503"} <= documented, path
        if endpoint in WITH_BODY:
            assert {"400", "413", "415", "422"} <= documented, path
        if "{" in path:
            assert "404" in documented, path


def test_every_error_in_the_document_has_the_one_shape(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (path, status)
    assert set(document["components"]["schemas"]["ErrorDetail"]["required"]) == {"code", "message", "fields"}


def test_answers_have_exactly_the_documented_fields(app: Any, document: dict[str, Any]) -> None:
    """Keys of real answers against the schema the document gives for them, nested models included."""
    schemas = document["components"]["schemas"]
    client = Client(app).log_in()
    entry = {"domains": "example.com", "proxy_pass_host": "http://backend", "ssl": True}
    assert client.post("/proxy", entry).status_code == 201
    with app.extensions["lyttle_ops"].database.connection() as connection:
        connection.execute("INSERT INTO nodes (name, machine_id) VALUES ('node1', 'm')")
        connection.execute(
            "INSERT INTO instances (id, node_name, hostname, version) VALUES (gen_random_uuid(), 'node1', 'h', '1')"
        )
        connection.execute("INSERT INTO certificates (domains, revision) VALUES ('{example.com}', 1)")

    def check(value: Any, schema: dict[str, Any], where: str) -> None:
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        options = schema.get("anyOf")
        if options:
            if value is None:
                assert {"type": "null"} in options, where
                return
            schema = next(option for option in options if option != {"type": "null"})
            check(value, schema, where)
            return
        if schema.get("type") == "array":
            assert isinstance(value, list), where
            for item in value:
                check(item, schema["items"], f"{where}[]")
        elif "properties" in schema:
            assert set(value) == set(schema["properties"]), where
            for name, child in schema["properties"].items():
                check(value[name], child, f"{where}.{name}")
        elif schema.get("type") == "object":
            assert isinstance(value, dict), where
        elif schema.get("format") == "date-time":
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value), where

    for path in ("/proxy", "/proxy/1", "/certificates", "/certificates/1", "/cluster/nodes", "/cluster/stats",
                 "/cluster/leader", "/auth/me", "/health/live"):  # fmt: skip
        template = re.sub(r"^/(proxy|certificates)/1$", lambda m: f"/{m[1]}/{{{m[1].rstrip('s')}_id}}", path)
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        response = document["paths"][template]["get"]["responses"]["200"]
        check(answer.json, response["content"]["application/json"]["schema"], path)


def test_the_directives_of_custom_code_are_listed_once(document: dict[str, Any]) -> None:
    """The messages that refuse one lead here."""
    schemas = document["components"]["schemas"]
    assert "proxy_set_header" in schemas["ProxyInput"]["properties"]["nginx_custom_code"]["description"]
    assert str(document).count("proxy_set_header") == 1


def test_the_page_loads_nothing_from_elsewhere(app: Any) -> None:
    """Operators look at it from networks without the Internet."""
    client = Client(app)
    page = client.get("/openapi", follow_redirects=True)
    assert page.status_code == 200
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page.text)
    for asset in re.findall(r"""(?:src|href)="([^"]+)\"""", page.text):
        answer = client.get(f"/openapi/{asset}")
        assert answer.status_code == 200, asset
        answer.close()

"""The request body of an entry: JSON's own types, errors by field, the whole checked together."""

from typing import Any

import pytest
from pydantic import ValidationError

from lyttle_ops.proxies import ProxyChanges, ProxyInput

LEAST = {"domains": "example.com", "proxy_pass_host": "http://backend:8080"}


def problems(**fields: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        ProxyInput.model_validate({**LEAST, **fields})
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


def test_the_least_entry_passes_http_on_and_redirects_to_https_once_it_can() -> None:
    entry = ProxyInput.model_validate(LEAST)
    assert (entry.type, entry.ssl, entry.enabled, entry.force_https, entry.hsts) == ("PROXY", False, True, True, False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ssl", "true"),
        ("ssl", 1),
        ("ssl", None),
        ("connect_timeout", "10"),
        ("connect_timeout", 10.0),
        ("connect_timeout", True),
        ("connect_timeout", 0),
        ("connect_timeout", 76),
        ("read_timeout", 86_401),
        ("client_max_body_size", -1),
        ("client_max_body_size", 10**30),
        ("client_max_body_size", float("nan")),
        ("redirect_code", 200),
        ("redirect_code", "308"),
        ("type", "proxy"),
        ("nginx_custom_code", 5),
        ("nginx_custom_code", "x" * 70_000),
        ("nginx_custom_code", "include /etc/passwd;"),
        ("nginx_custom_code", "return 200"),
        ("nginx_custom_code", "}\nserver { listen 1; }"),
        ("proxy_pass_host", 5),
        ("proxy_pass_host", "backend"),
        ("proxy_pass_host", "http://\ud800"),
        ("id", 5),
        ("revision", 1),
    ],
)
def test_a_wrong_value_is_refused_under_its_own_name(field: str, value: Any) -> None:
    assert set(problems(**{field: value})) == {field}


def test_every_wrong_field_is_told_at_once() -> None:
    assert set(problems(domains="*.a.example", proxy_pass_host="x", ssl="yes")) == {
        "domains.0",
        "proxy_pass_host",
        "ssl",
    }


def test_both_fields_that_have_no_default_are_required() -> None:
    with pytest.raises(ValidationError) as caught:
        ProxyInput.model_validate({})
    assert {error["loc"] for error in caught.value.errors()} == {("domains",), ("proxy_pass_host",)}


def test_custom_code_is_kept_as_it_was_written() -> None:
    code = "# keep me\nadd_header X-Test  'a b';\n"
    assert ProxyInput.model_validate({**LEAST, "nginx_custom_code": code}).nginx_custom_code == code


def test_a_redirect_to_itself_is_refused() -> None:
    assert "redirect to itself" in problems(type="REDIRECT", proxy_pass_host="https://example.com/x")[""]
    ProxyInput.model_validate({**LEAST, "type": "REDIRECT", "proxy_pass_host": "https://www.example.com"})


def test_a_name_without_a_dot_is_refused_with_ssl_only() -> None:
    assert "no dot" in problems(domains="intranet", ssl=True)[""]
    ProxyInput.model_validate({**LEAST, "domains": "intranet"})


def test_changes_hold_what_was_written_and_nothing_else() -> None:
    changes = ProxyChanges.model_validate({"ssl": True, "domains": "B.example.com;a.example.com"})
    assert changes.model_dump(include=changes.model_fields_set) == {
        "ssl": True,
        "domains": ("a.example.com", "b.example.com"),
    }


@pytest.mark.parametrize("changes", [{"ssl": None}, {"ssl": "true"}, {"domains": None}, {"id": 1}, {"read_timeout": 0}])
def test_changes_are_as_strict_as_a_new_entry(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProxyChanges.model_validate(changes)


def test_the_schema_of_changes_promises_no_defaults_and_requires_nothing() -> None:
    """A default in the document would tell clients that what they leave out is reset."""
    schema = ProxyChanges.model_json_schema()
    assert "required" not in schema
    assert not any("default" in field for field in schema["properties"].values())
    assert set(schema["properties"]) == set(ProxyInput.model_fields)

"""Domain names: every spelling ends in one form, and what is no host name is refused with the reason."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lyttle_ops.proxies import ProxyInput
from lyttle_ops.proxies.domains import normalise_domain


def domains_of(value: object) -> tuple[str, ...]:
    return ProxyInput.model_validate({"domains": value, "proxy_pass_host": "http://backend"}).domains


def problems(value: object) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        domains_of(value)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("www.example.com", "www.example.com"),
        ("  WWW.Example.COM.  ", "www.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),  # ß is a letter of its own since IDNA 2008
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),  # an ideographic full stop is a dot
        ("ｅｘａｍｐｌｅ.com", "example.com"),  # full width
        ("1.example.com", "1.example.com"),
        ("intranet", "intranet"),
        ("a" * 63 + ".example.com", "a" * 63 + ".example.com"),
    ],
)
def test_every_spelling_of_a_name_ends_in_one_form(written: str, normal: str) -> None:
    assert normalise_domain(written) == normal


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "empty"),
        (".", "empty"),
        ("*.example.com", "wildcard"),
        ("www.*.com", "wildcard"),
        ("192.0.2.1", "IP address"),
        ("2001:db8::1", "IP address"),
        ("[2001:db8::1]", "IP address"),
        ("１９２.0.2.1", "number"),
        ("1.2.3", "number"),
        ("0x7f.1", "number"),
        ("a..example.com", "not a host name"),
        (".example.com", "not a host name"),
        ("-a.example.com", "not a host name"),
        ("a-.example.com", "not a host name"),
        ("a_b.example.com", "not a host name"),
        ("a b.example.com", "not a host name"),
        ("a;b.example.com", "not a host name"),
        ("a；b.example.com", "not a host name"),  # a full-width semicolon must not become one
        ("a$b.example.com", "not a host name"),
        ("a\n.example.com", "not a host name"),
        ("a\x00.example.com", "not a host name"),
        ("xn--a.example.com", "not a host name"),  # no valid Punycode
        ("a" * 64 + ".example.com", "not a host name"),
        (".".join(["a" * 60] * 5), "too long"),
        ("a" * 2000, "too long"),
        ("https://example.com", "URL.*give the bare host name, as foo.example"),
        ("https://192.0.2.1/", "give the bare host name"),
        ("example.com/x", "give the bare host name"),
        ("example.com:80", "has a port.*give the bare host name"),
    ],
)
def test_what_is_no_host_name_is_refused_with_the_reason(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        normalise_domain(written)


@given(st.text(max_size=80) | st.text(alphabet=string.ascii_letters + string.digits + ".-_ü。", max_size=80))
def test_normalising_is_refused_or_repeats_itself(text: str) -> None:
    """Whatever is accepted is plain ASCII that NGINX takes as one word, and normalising it changes nothing."""
    try:
        normal = normalise_domain(text)
    except ValueError:
        return
    assert normalise_domain(normal) == normal
    assert set(normal) <= set(string.ascii_lowercase + string.digits + ".-")
    assert 0 < len(normal) <= 253


@pytest.mark.parametrize(
    "written",
    [
        "b.example.com;a.example.com",
        " b.example.com ; a.example.com ; ",
        ["b.example.com", "a.example.com"],
        ["B.example.com", "a.example.com.", "b.example.com"],
    ],
)
def test_one_string_a_semicolon_list_and_a_json_list_mean_the_same(written: object) -> None:
    assert domains_of(written) == ("a.example.com", "b.example.com")


def test_each_wrong_name_of_a_list_is_named_by_its_place() -> None:
    found = problems(["ok.example.com", "*.example.com", 5])
    assert set(found) == {"domains.1", "domains.2"}


def test_no_name_at_all_is_refused() -> None:
    for nothing in ("", " ; ", []):
        assert "domains" in problems(nothing)


def test_what_is_no_list_is_refused() -> None:
    for value in (5, None, True, {"a": 1}):
        found = problems(value)
        assert set(found) == {"domains"}
        assert "a name, a list separated by ';', or a JSON list of names" in found["domains"]


def test_at_most_a_hundred_names_once_duplicates_are_merged() -> None:
    names = [f"n{number}.example.com" for number in range(100)]
    assert len(domains_of(names + names)) == 100
    assert "at most 100" in problems([*names, "one.more.example.com"])["domains"]
    assert "too many" in problems("a;" * 400_000)["domains"]

"""The renderer is pure, and no field can add a directive."""

import ipaddress
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import crossplane
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lyttle_ops.nginx.errors import CustomCodeError, UnsafeValue
from lyttle_ops.nginx.model import Target
from lyttle_ops.nginx.render import release_file, release_hash, render, render_main, render_site
from tests.support.nginx import layout, site

NASTY = st.sampled_from(
    ["a;", "a; include /etc/passwd;", "a\nb", "a b", "a}", "{", "$host", "${a}", '"', "'", "\\", "a#b", "~.*", "*.a",
     ".a", "", "_", "unix:/x", "a\x00", "%0a", "[::1]", "127.0.0.1", "0", "é", "a\u2028b", "-", "a/../b"]
)  # fmt: skip
ANY = st.text() | NASTY | st.tuples(NASTY, NASTY).map("".join)
NUMBERS = st.integers() | ANY | st.floats() | st.none() | st.booleans()


def directives(text: str) -> Counter[str]:
    """How often each directive stands in a configuration, as crossplane reads it."""
    descriptor = os.memfd_create("test")
    try:
        os.write(descriptor, text.encode())
        parsed = crossplane.parse(
            f"/proc/self/fd/{descriptor}", single=True, catch_errors=False, check_ctx=False, check_args=False
        )
    finally:
        os.close(descriptor)
    assert parsed["status"] == "ok", parsed["errors"]

    def walk(block: list[dict[str, Any]]) -> Iterator[str]:
        for statement in block:
            yield statement["directive"]
            yield from walk(statement.get("block") or [])

    return Counter(walk(parsed["config"][0]["parsed"]))


def servers(text: str) -> list[str]:
    return re.findall(r"^server \{\n.*?^\}", text, re.MULTILINE | re.DOTALL)


FULL = site(
    7,
    domains=("a.example", "b.example", "c.example"),
    target=Target("https", "backend.example", 8443, "/base"),
    tls={"a.example": "1-a", "b.example": "2-b"},
    ssl=True,
    hsts=True,
    custom_code="location /x { proxy_pass http://other:1; }",
)


USUAL = {
    name
    for one in (
        FULL,
        replace(FULL, kind="redirect"),
        replace(FULL, target=Target("https", "10.0.0.1", 1, "/base")),
        replace(FULL, custom_code=FULL.custom_code + "\nadd_header X y;"),
    )
    for name in directives(render_site(one, layout()))
}


@settings(max_examples=1000)
@given(
    field=st.sampled_from(
        "domain host path scheme port kind certificate size connect read code custom".split()  # noqa: SIM905 - reads as a list
    ),
    text=ANY,
    value=NUMBERS,
)
def test_no_field_of_a_site_can_add_a_directive(field: str, text: str, value: Any) -> None:
    changes: dict[str, Any] = {
        "domain": {"domains": (text, "b.example", "c.example")},
        "host": {"target": replace(FULL.target, host=text)},
        "path": {"target": replace(FULL.target, path=text)},
        "scheme": {"target": replace(FULL.target, scheme=text)},
        "port": {"target": replace(FULL.target, port=value)},
        "kind": {"kind": text},
        "certificate": {"tls": {"a.example": text, "b.example": "2-b"}},
        "size": {"client_max_body_size": value},
        "connect": {"connect_timeout": value},
        "read": {"read_timeout": value},
        "code": {"redirect_code": value, "kind": "redirect"},
        "custom": {"custom_code": f"location /x {{ proxy_pass http://other:1; }}\nadd_header X {text};"},
    }[field]
    changed = replace(FULL, **changes)
    expected = set(USUAL)
    if field == "custom":
        expected |= {"location", "return", "set", "if"}  # allowed names that a text may spell
    try:
        rendered = render_site(changed, layout())
    except (UnsafeValue, CustomCodeError):
        return
    assert set(directives(rendered)) <= expected
    if field != "custom":
        found = directives(rendered)
        assert found["server"] - found["upstream"] <= 4  # an upstream of one server has a `server` of its own


@pytest.mark.parametrize(
    "changes",
    [
        {"domains": ()},
        {"domains": ("a b",)},
        {"domains": ("*.example",)},
        {"domains": ("~^a$",)},
        {"domains": ("A.example",)},
        {"domains": ("a" * 64 + ".example",)},
        {"target": Target("http", "unix:/run/x", 80)},
        {"target": Target("http", "a;b", 80)},
        {"target": Target("http", "$host", 80)},
        {"target": Target("http", "fe80::1%eth0", 80)},
        {"target": Target("http", "a", 0)},
        {"target": Target("http", "a", 80, "/a b")},
        {"target": Target("http", "a", 80, "/a?b")},
        {"target": Target("http", "a", 80, "a")},
        {"target": Target("http", "a", 80, "/")},
        {"connect_timeout": 0},
        {"read_timeout": 10**9},
        {"client_max_body_size": -1},
        {"tls": {"site1.example": "../x"}},
        {"kind": "redirect", "redirect_code": 200},
    ],
)
def test_a_value_that_is_not_what_its_field_may_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsafeValue):
        render_site(site(**changes), layout())


USUAL_MAIN = set(directives(render_main(layout(user="www-data", trusted_load_balancers=("10.0.0.0/8",)), [])))


@settings(max_examples=200)
@given(
    field=st.sampled_from(
        [
            *("http_listen", "https_listen", "name_servers", "trusted_load_balancers"),
            *("thumbprint", "instance_id", "task_id", "user", "folder"),
        ]
    ),
    text=ANY,
)
def test_no_field_of_the_layout_can_add_a_directive(field: str, text: str) -> None:
    value: Any = (text,) if field.endswith(("listen", "servers", "balancers")) else text
    try:
        rendered = render_main(layout(**{field: Path(value) if field == "folder" else value}), [])
    except UnsafeValue:
        return
    # Inside `geo` a trusted network stands where a directive would.
    own = {str(ipaddress.ip_network(text))} if field == "trusted_load_balancers" else set()
    assert set(directives(rendered)) <= USUAL_MAIN | own


def test_who_answers_is_told_with_the_task_where_there_is_one() -> None:
    assert "X-Lyttle-Task" not in render_main(layout(), [])
    assert "add_header X-Lyttle-Task k3v9 always;" in render_main(layout(task_id="k3v9"), [])


def test_the_same_desired_state_renders_to_the_same_release() -> None:
    sites = [site(2), FULL]
    assert render(sites, layout()) == render(sites, layout())
    assert release_hash(render(sites, layout())) == release_hash(render(sites[::-1], layout()))
    assert release_hash(render(sites, layout())) != release_hash(render([site(2)], layout()))


def test_a_new_certificate_name_or_thumbprint_is_a_new_release() -> None:
    hashes = {
        release_hash(render([one], plain))
        for one in (FULL, replace(FULL, tls={**FULL.tls, "a.example": "1-b"}))
        for plain in (layout(), layout(thumbprint="other"))
    }
    assert len(hashes) == 4


def test_the_hash_is_not_part_of_what_is_hashed() -> None:
    files = render([FULL], layout())
    assert release_hash(files) not in "".join(files.values())
    assert release_hash(files) in release_file(release_hash(files))


@pytest.mark.parametrize(
    ("version", "parameter", "directive"),
    [((1, 22, 1), True, False), ((1, 25, 0), True, False), ((1, 25, 1), False, True)],
)
def test_http2_is_written_as_this_nginx_reads_it(
    version: tuple[int, int, int], parameter: bool, directive: bool
) -> None:
    files = render([FULL], layout(nginx_version=version))
    listens = [line for text in files.values() for line in text.splitlines() if "listen" in line and "443" in line]
    assert listens
    assert all(("ssl http2" in line) == parameter for line in listens)
    assert ("http2 on;" in files["nginx.conf"]) == directive


def test_every_release_has_the_same_listen_lines() -> None:
    def listens(*sites: Any) -> set[str]:
        text = "".join(render(sites, layout()).values())
        return {found.split()[0] for found in re.findall(r"listen (.*?);", text)}

    assert listens() == listens(FULL) == listens(FULL, site(1))
    assert "reuseport" not in "".join(render([FULL], layout()).values())


def test_ipv6_sockets_are_ipv6_only() -> None:
    assert "listen [::]:80 default_server ipv6only=on;" in render([], layout())["nginx.conf"]


def test_proxy_protocol_is_expected_on_ports_and_not_on_own_sockets() -> None:
    text = "".join(render([FULL], layout(proxy_protocol=True)).values())
    for line in re.findall(r"listen (.*?);", text):
        assert ("proxy_protocol" in line) != line.startswith("unix:")
    assert "real_ip_header proxy_protocol;" in text


def test_domains_are_grouped_by_certificate_and_those_without_stay_on_http() -> None:
    text = render_site(FULL, layout())
    blocks = servers(text)
    http = [block for block in blocks if ":80;" in block]
    https = [block for block in blocks if ":443 " in block]
    assert ["server_name c.example;" in block for block in http] == [True, False]
    assert "return 308 https://$host$request_uri;" in http[1]
    assert "server_name a.example b.example;" in http[1]
    assert ["server_name a.example;" in block and "certs/1-a.pem" in block for block in https] == [True, False]
    assert ["server_name b.example;" in block and "certs/2-b.key" in block for block in https] == [False, True]
    assert all("Strict-Transport-Security" in block for block in https)
    assert "Strict-Transport-Security" not in http[0]


def test_without_force_https_both_ports_serve_the_site() -> None:
    blocks = servers(render_site(replace(FULL, force_https=False), layout()))
    assert len(blocks) == 3
    assert not any("return 308" in block for block in blocks)


def test_a_redirect_to_https_names_a_port_that_is_not_443() -> None:
    text = render_site(FULL, layout(https_listen=("127.0.0.1:8443",)))
    assert "return 308 https://$host:8443$request_uri;" in text


def test_names_are_resolved_at_run_time_and_addresses_get_a_keep_alive_upstream() -> None:
    assert "upstream" not in render_site(site(target=Target("http", "backend", 8080)), layout())
    assert "proxy_pass http://backend:8080$lyttle_nothing;" in render_site(
        site(target=Target("http", "backend", 8080)), layout()
    )
    for host, server in (
        ("10.1.2.3", "10.1.2.3:8080;"),
        ("fd00::1", "[fd00::1]:8080;"),
        ("localhost", "127.0.0.1:8080 "),
    ):
        text = render_site(site(5, target=Target("http", host, 8080)), layout())
        assert "upstream lyttle_site_5 {" in text
        assert f"server {server}" in text
        assert "keepalive 32;" in text


def test_a_dollar_sign_in_a_path_is_encoded() -> None:
    text = render_site(site(target=Target("http", "backend", 80, "/a$b")), layout())
    assert "proxy_pass http://backend:80/a%24b$request_uri;" in text


def test_custom_code_takes_the_place_of_the_same_directive_only() -> None:
    text = render_site(site(custom_code='proxy_read_timeout 5m; proxy_set_header host "x"; add_header A b;'), layout())
    assert text.count("proxy_read_timeout") == 1
    assert "proxy_read_timeout 5m;" in text
    assert re.findall(r"proxy_set_header host .*", text, re.IGNORECASE) == ["proxy_set_header host x;"]
    assert "proxy_set_header X-Real-IP $remote_addr;" in text


def test_a_socket_path_that_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsafeValue, match="RUN_DIR"):
        render([], layout(folder=Path("/" + "x" * 100)))


def test_a_folder_with_spaces_and_quotes_is_quoted() -> None:
    text = "".join(render([FULL], layout(folder=Path('/run/a "b" {c}'))).values())
    assert directives(text)["server"] == directives("".join(render([FULL], layout()).values()))["server"]
    assert r'listen "unix:/run/a \"b\" {c}/nginx.sock" default_server;' in text

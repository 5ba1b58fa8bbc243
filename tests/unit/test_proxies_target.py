"""Targets: parsed as a URL, never pasted; the normal form parses to itself."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyttle_ops.nginx import fields
from lyttle_ops.proxies import parse_target, write_target


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("http://backend:8080", "http://backend:8080"),
        ("HTTP://Backend", "http://backend"),
        ("http://backend:80/", "http://backend"),
        ("https://backend:443", "https://backend"),
        ("https://backend:80", "https://backend:80"),
        ("http://stack_web:3000/base/", "http://stack_web:3000/base"),
        ("http://192.0.2.1:8080", "http://192.0.2.1:8080"),
        ("http://[2001:DB8:0::1]:8080/x", "http://[2001:db8::1]:8080/x"),
        ("http://[::1]", "http://[::1]"),
        ("http://backend./", "http://backend"),
        ("http://bücher.example", "http://xn--bcher-kva.example"),
        ("http://a/%c3%a4/b", "http://a/%C3%A4/b"),
        ("http://a/@scope/x", "http://a/@scope/x"),
        (" http://a ", "http://a"),
        ("http://a:00080", "http://a"),
    ],
)
def test_a_target_has_one_normal_form(written: str, normal: str) -> None:
    assert write_target(parse_target(written)) == normal


@pytest.mark.parametrize(
    "written",
    [
        "",
        "backend:8080",
        "//backend",
        "ftp://backend",
        "http://",
        "http:///path",
        "http://:80",
        "http://user@backend",
        "http://user:password@backend",
        "http://backend?query",
        "http://backend/#fragment",
        "http://backend/$uri",
        "http://$host",
        "http://backend;return 200",
        "http://backend/;x",
        "http://backend{}",
        "http://backend'",
        'http://backend"',
        "http://backend\\x",
        "http://back end",
        "http://backend\n",
        "http://backend\x00",
        "http://backend/\x7f",
        "http://backend/ä",
        "http://backend/%",
        "http://backend/%zz",
        "http://backend/%0a",
        "http://backend/%00",
        "http://backend/../x",
        "http://backend/%2e%2E/x",
        "http://backend/.",
        "http://backend:0",
        "http://backend:65536",
        "http://backend:",
        "http://backend:８０",  # full-width digits
        "http://backend:+80",
        "http://1.2.3",
        "http://256.1.1.1",
        "http://0x7f.1",
        "http://2130706433",
        "http://[::1",
        "http://[1.2.3.4]",
        "http://[fe80::1%25eth0]",
        "http://[fe80::1%eth0]",
        "http://-a",
        "http://a..b",
        "http://unix:/run/x.sock",
        "http://a/" + "b" * 3000,
    ],
)
def test_anything_but_a_plain_url_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|has|holds|names|does|'|\[)"):
        parse_target(written)


@pytest.mark.parametrize(
    "written", ["http://unix:/run/x.sock", "HTTP://UNIX:/x:/path", "https://unix:x", "http://unix:80"]
)
def test_a_unix_socket_is_called_by_its_name(written: str) -> None:
    with pytest.raises(ValueError, match="is a UNIX socket"):
        parse_target(written)


_hosts = st.text(alphabet=string.ascii_letters + string.digits + "._-[]:@%ü", max_size=30)
_paths = st.text(alphabet=string.printable + "ä\u2028", max_size=40)


@given(
    st.text(max_size=60)
    | st.builds(
        lambda scheme, host, port, path: f"{scheme}://{host}{port}{path}",
        st.sampled_from(["http", "https", "HTTP"]),
        _hosts,
        st.sampled_from(["", ":80", ":443", ":8080", ":0", ":x"]),
        _paths.map(lambda path: f"/{path}") | st.just(""),
    )
)
def test_a_target_is_refused_or_parses_to_itself(text: str) -> None:
    """Whatever is accepted is one word of plain ASCII without anything that means something to NGINX."""
    try:
        target = parse_target(text)
    except ValueError:
        return
    normal = write_target(target)
    assert parse_target(normal) == target
    assert write_target(parse_target(normal)) == normal
    assert not set(normal) & set("$;{}\"'\\#? \t\r\n")
    assert normal.isascii()
    assert normal.isprintable()
    # The renderer checks again what it is given; it has nothing to object to.
    assert fields.authority(target)
    assert fields.path(target) == target.path

"""Where an entry leads: a URL, taken apart character by character and built anew, never pasted.

Accepted is `scheme://host[:port][/path]` (RFC 3986) with http or https and nothing else: no user, no query, no
fragment, and no character that means something to NGINX. `write_target(parse_target(text))` is the normal form,
and parsing the normal form gives the same target again.
"""

import ipaddress
import re

from lyttle_ops.nginx.model import Target
from lyttle_ops.proxies.domains import to_ascii

_ACCEPTED = "accepted: http://host:port or https://host:port, with an optional path"
_LONGEST = 2000  # characters
_DEFAULT_PORT = {"http": 80, "https": 443}
_SCHEME = re.compile(r"(https?)://", re.IGNORECASE)
_SOCKET = re.compile(r"unix\.?([:/]|$)", re.IGNORECASE)  # what NGINX reads as one, even with a number behind it
_REST = re.compile(r"(?P<host>\[[^\]]*\]|[^:/\[\]]*)(?::(?P<port>[^/]*))?(?P<path>/.*)?", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")  # `_`: names of Docker services have it
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH = re.compile(r"(?:[A-Za-z0-9._~!&()*+,=:@/-]|%[0-9A-Fa-f]{2})*")  # RFC 3986 pchar without $ ; and '
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
# Each with the name it has in a message.
_FORBIDDEN = {
    "@": "a user or password (@)",
    "?": "a query (?)",
    "#": "a fragment (#)",
    "$": "a variable ($)",
    ";": "a semicolon",
    "{": "a brace",
    "}": "a brace",
    '"': "a quote",
    "'": "a quote",
    "`": "a quote",
    "\\": "a backslash",
    "<": "an angle bracket",
    ">": "an angle bracket",
    "|": "a bar",
    "^": "a caret",
}


def parse_target(text: str) -> Target:
    """The target that `text` names. Raises ValueError saying what is wrong and what is accepted."""
    url = text.strip(" ")
    if len(url) > _LONGEST:
        raise ValueError(f"is too long; at most {_LONGEST} characters")
    if not url:
        raise ValueError(f"is empty; {_ACCEPTED}")
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError(f"holds a space or a control character; {_ACCEPTED}")
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise ValueError(f"does not start with http:// or https://; {_ACCEPTED}")
    rest = url[scheme.end() :]
    if _SOCKET.match(rest):
        raise ValueError(f"is a UNIX socket, which other nodes do not have; {_ACCEPTED}")
    authority = rest.partition("/")[0]
    for character, name in _FORBIDDEN.items():
        # An @ is a user in front of the path and an ordinary character inside it.
        if character in (authority if character == "@" else rest):
            raise ValueError(f"holds {name}; {_ACCEPTED}")
    parts = _REST.fullmatch(rest)
    if parts is None:
        raise ValueError(f"has no readable host; {_ACCEPTED}")
    name = scheme.group(1).lower()
    return Target(
        scheme="https" if name == "https" else "http",
        host=_host(parts["host"]),
        port=_port(parts["port"], _DEFAULT_PORT[name]),
        path=_path(parts["path"] or ""),
    )


def write_target(target: Target) -> str:
    """The target as a URL in its normal form; a default port is left out."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    port = "" if target.port == _DEFAULT_PORT[target.scheme] else f":{target.port}"
    return f"{target.scheme}://{host}{port}{target.path}"


def _host(text: str) -> str:
    if not text:
        raise ValueError(f"names no host; {_ACCEPTED}")
    if text.startswith("["):
        try:
            address = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv6 address; accepted: [fd00::1]") from None
        if address.scope_id:
            raise ValueError(f"{text!r} has a zone, which means nothing on another node; accepted: [fd00::1]")
        return str(address)
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        pass
    name = text.lower().removesuffix(".") if text.isascii() else to_ascii(text, repr(text[:80]))
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text[:80]!r} is not a host name or IP address; {_ACCEPTED}")
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError(f"{text[:80]!r} is neither a host name nor a whole IPv4 address; {_ACCEPTED}")
    return name


def _port(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError(f"has the port {text[:20]!r}; accepted: 1 to 65535")
    return int(text)


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError("has a character in its path that must be percent-encoded (RFC 3986 section 2.1)")
    path = _ENCODED.sub(lambda found: found.group(0).upper(), text)
    for code in _ENCODED.findall(path):
        if int(code, 16) < 0x20 or int(code, 16) == 0x7F:
            raise ValueError(f"has an encoded control character (%{code}) in its path")
    if any(segment.upper().replace("%2E", ".") in (".", "..") for segment in path.split("/")):
        raise ValueError("has a . or .. segment in its path; write the path it leads to")
    return path.rstrip("/")  # a path is a prefix: /base makes /x into /base/x

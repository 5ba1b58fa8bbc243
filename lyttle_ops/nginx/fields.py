"""Each field of a site and of a layout as configuration text, or UnsafeValue when it is not what it may be."""

import ipaddress
import re
from pathlib import Path

from lyttle_ops.nginx.errors import UnsafeValue
from lyttle_ops.nginx.model import Layout, Target
from lyttle_ops.nginx.syntax import Text, literal, number

SOCKET_PATH_LIMIT = 107  # bytes, sun_path of unix(7) less its closing zero

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")
_CERTIFICATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def domain(value: str) -> Text:
    """A domain as A-labels: no wildcard, no expression, nothing that `server_name` reads as more than a name."""
    if len(value) > 253 or not _NAME.fullmatch(value):
        raise UnsafeValue(f"{value!r} is not a domain")
    return literal(value)


def authority(target: Target) -> Text:
    """host:port of a target, IPv6 in brackets."""
    if type(target.port) is not int or not 0 < target.port < 65536:
        raise UnsafeValue(f"{target.port!r} is not a port")
    return literal(f"{host(target)}:{target.port}")


def host(target: Target) -> Text:
    """The host of a target, IPv6 in brackets."""
    if target.is_address:
        address = ipaddress.ip_address(target.host)
        if "%" in target.host:
            raise UnsafeValue(f"{target.host!r}: an address with a zone cannot be a target")
        return literal(f"[{address}]" if address.version == 6 else str(address))
    if target.host.lower() == "unix" or len(target.host) > 253 or not _NAME.fullmatch(target.host):
        raise UnsafeValue(f"{target.host!r} is not a host name")
    return literal(target.host)


def scheme(target: Target) -> Text:
    if target.scheme not in ("http", "https"):
        raise UnsafeValue(f"{target.scheme!r} is not http or https")
    return literal(target.scheme)


def path(target: Target) -> Text:
    """The path of a target with no dollar sign left in it (%24 means the same to whoever is asked)."""
    if not _PATH.fullmatch(target.path) or target.path.endswith("/"):
        raise UnsafeValue(f"{target.path!r} is not a path: /base, percent-encoded, without a slash at the end")
    return Text(target.path.replace("$", "%24"))


def listen(value: str, layout: Layout, *, tls: bool = False, default: bool = False) -> Text:
    """A `listen` line's arguments for an address (0.0.0.0:80, [::]:80) or a socket (unix:/path)."""
    words = []
    if value.startswith("unix:/"):
        if len(value.removeprefix("unix:").encode()) > SOCKET_PATH_LIMIT:
            raise UnsafeValue(
                f"{value}: the path of a socket is limited to {SOCKET_PATH_LIMIT} bytes; choose a shorter RUN_DIR"
            )
        words.append(literal(value))
    else:
        words.append(_address(value))
    if default:
        words.append(Text("default_server"))
        if value.startswith("["):
            words.append(Text("ipv6only=on"))
    if tls:
        words.append(Text("ssl"))
        if not has_http2_directive(layout):
            words.append(Text("http2"))
    if layout.proxy_protocol and not value.startswith("unix:"):
        words.append(Text("proxy_protocol"))
    return Text(" ".join(words))


def has_http2_directive(layout: Layout) -> bool:
    """`http2 on` came with NGINX 1.25.1, which also deprecated the parameter of `listen`."""
    return layout.nginx_version >= (1, 25, 1)


def name_server(value: str) -> Text:
    """10.0.0.2, 10.0.0.2:53, [fd00::2] or [fd00::2]:53."""
    if re.fullmatch(r"\[[^\]]+\]:\d+|[0-9.]+:\d+", value):
        return _address(value)
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return Text(_address(f"[{bare}]:53" if ":" in bare else f"{bare}:53").rpartition(":")[0])


def network(value: str) -> Text:
    try:
        return literal(str(ipaddress.ip_network(value)))
    except ValueError:
        raise UnsafeValue(f"{value!r} is not a network in CIDR form") from None


def seconds(value: int) -> Text:
    if type(value) is not int or not 0 < value <= 86_400 * 30:
        raise UnsafeValue(f"{value!r} is not a number of seconds from 1 to 2592000")
    return Text(f"{number(value)}s")


def redirect_code(value: int) -> Text:
    if value not in (301, 302, 303, 307, 308):
        raise UnsafeValue(f"{value!r} is not a redirect: 301, 302, 303, 307 or 308")
    return number(value)


def certificate(name: str) -> Text:
    """A certificate's name: the stem of two files."""
    if not _CERTIFICATE.fullmatch(name):
        raise UnsafeValue(f"{name!r} is not the name of a certificate")
    return literal(name)


def thumbprint(value: str) -> Text:
    if value and not _THUMBPRINT.fullmatch(value):
        raise UnsafeValue("the account key's thumbprint is not base64url")
    return literal(value) if value else Text("")


def identifier(value: str) -> Text:
    if not _IDENTIFIER.fullmatch(value):
        raise UnsafeValue(f"{value!r} is not an identifier")
    return literal(value)


def file(folder: Path, name: str) -> Text:
    """An absolute path inside `folder`."""
    if not folder.is_absolute():
        raise UnsafeValue(f"{str(folder)!r} is not an absolute path")
    return literal(str(folder / name))


def https_port(layout: Layout) -> Text:
    """What a redirect to HTTPS adds to the host: nothing for port 443."""
    ports = [address.rpartition(":")[2] for address in layout.https_listen if not address.startswith("unix:")]
    if not ports or ports[0] == "443":
        return Text("")
    return Text(":" + number(int(ports[0])))


def _address(value: str) -> Text:
    host_part, _, port = value.rpartition(":")
    bracketed = host_part.startswith("[") and host_part.endswith("]")
    try:
        address = ipaddress.ip_address(host_part[1:-1] if bracketed else host_part)
        if (address.version == 6) != bracketed or "%" in host_part or not port.isascii() or not 0 < int(port) < 65536:
            raise ValueError
    except ValueError:
        raise UnsafeValue(f"{value!r} is not an address with a port") from None
    return literal(f"[{address}]:{int(port)}" if bracketed else f"{address}:{int(port)}")

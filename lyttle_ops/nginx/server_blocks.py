"""The server blocks of one site, as directives.

HTTP and HTTPS get blocks of their own, and each certificate its own HTTPS block. What LyttleOps sets stands at server
level and is inherited by every location, so that custom code can replace single directives of it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from lyttle_ops.nginx import fields
from lyttle_ops.nginx.custom_code import location_path, parse_custom_code, parse_pass
from lyttle_ops.nginx.errors import UnsafeValue
from lyttle_ops.nginx.model import Layout, Site, Target
from lyttle_ops.nginx.syntax import Directive, Text, literal, number

_ACME = "^/[.]well-known/acme-challenge/"
_REPEATABLE = {"proxy_set_header", "add_header", "add_trailer", "proxy_hide_header"}
_BEFORE_LOCATIONS = {"return", "rewrite", "if", "set", "break"}  # run before NGINX chooses a location
_NO_CIRCLE = Directive.of("if", "$lyttle_circling", block=[Directive.of("return", "508")])
_HSTS = Directive.of("add_header", "Strict-Transport-Security", "max-age=31536000", "always")


@dataclass(frozen=True, slots=True)
class ServerBlock:
    listen: tuple[Text, ...]
    domains: tuple[Text, ...]
    certificate: Text | None
    key: Text | None
    body: tuple[Directive, ...]


def upstream_servers(site: Site) -> tuple[Text, ...]:
    """Servers of the site's `upstream` block; empty when its name is resolved at run time instead.

    Run-time resolution ignores /etc/hosts and costs keep-alive, so addresses and localhost do without it.
    """
    if site.kind != "proxy":
        return ()
    if site.target.host == "localhost":
        port = fields.authority(site.target).rpartition(":")[2]
        # No max_fails: a service on one of the two loopback addresses is not half down.
        return Text(f"127.0.0.1:{port} max_fails=0"), Text(f"[::1]:{port} max_fails=0 backup")
    return (fields.authority(site.target),) if site.target.is_address else ()


def upstream_name(site: Site) -> Text:
    return Text(f"lyttle_site_{number(site.id)}")


def server_blocks(site: Site, layout: Layout) -> list[ServerBlock]:
    """Every `server` block of `site`. Raises UnsafeValue and CustomCodeError."""
    if not site.domains:
        raise UnsafeValue("a site needs a domain")
    if site.kind not in ("proxy", "redirect"):
        raise UnsafeValue(f"{site.kind!r} is not proxy or redirect")
    certificates: dict[str, list[str]] = {}
    for name in site.domains:
        if name in site.tls:
            certificates.setdefault(site.tls[name], []).append(name)
    redirected = [name for name in site.domains if name in site.tls and site.force_https]
    plain = [name for name in site.domains if name not in redirected]

    http = tuple(fields.listen(address, layout) for address in layout.http_listen)
    https = tuple(
        fields.listen(address, layout, tls=True)
        for address in (*layout.https_listen, f"unix:{layout.folder}/nginx-tls.sock")
    )
    blocks = []
    if plain:
        blocks.append(ServerBlock(http, _domains(plain), None, None, _body(site, layout, tls=False)))
    if redirected:
        body = _body(site, layout, tls=False, to_https=True)
        blocks.append(ServerBlock(http, _domains(redirected), None, None, body))
    for certificate, names in sorted(certificates.items()):
        stem = fields.certificate(certificate)
        blocks.append(
            ServerBlock(
                https,
                _domains(names),
                fields.file(layout.folder, f"certs/{stem}.pem"),
                fields.file(layout.folder, f"certs/{stem}.key"),
                _body(site, layout, tls=True),
            )
        )
    return blocks


def _domains(names: Iterable[str]) -> tuple[Text, ...]:
    return tuple(fields.domain(name) for name in sorted(names))


def _body(site: Site, layout: Layout, *, tls: bool, to_https: bool = False) -> tuple[Directive, ...]:
    before: list[Directive] = []
    content: list[Directive] = []
    if to_https:
        redirect = Directive.of("return", "308", f"https://$host{fields.https_port(layout)}$request_uri")
        if layout.trusted_load_balancers:  # one of them may have ended TLS already
            before = [Directive.of("if", "$lyttle_scheme", "=", "http", block=[redirect])]
        else:
            before = [redirect]
    if not to_https or layout.trusted_load_balancers:
        content = _content(site, layout, hsts=site.hsts and (tls or to_https) and bool(site.tls))
    if not site.ssl:
        return (*before, *content)
    # A break here ends the server's own rewriting; a location, also one of custom code, is not yet chosen.
    guard = [Directive.of("if", "$uri", "~", _ACME, block=[Directive.of("break")])]
    needed = before or any(directive.name in _BEFORE_LOCATIONS and directive is not _NO_CIRCLE for directive in content)
    return (*(guard if needed else ()), *before, *content, _challenge(layout))


def _challenge(layout: Layout) -> Directive:
    """Answers HTTP-01 (RFC 8555 section 8.3) for any token. `return` comes before all access rules, and ^~ before all
    expressions; custom code cannot name a longer path here.
    """
    answer = []
    if layout.thumbprint:
        text = f"$lyttle_token.{fields.thumbprint(layout.thumbprint)}"
        token = _ACME + "(?<lyttle_token>[A-Za-z0-9_-]+)$"
        answer = [Directive.of("if", "$uri", "~", token, block=[Directive.of("return", "200", text)])]
    return Directive.of(
        "location", "^~", "/.well-known/acme-challenge/",
        block=[Directive.of("default_type", "text/plain"), *answer, Directive.of("return", "404", "not found\n")],
    )  # fmt: skip


def _content(site: Site, layout: Layout, *, hsts: bool) -> list[Directive]:
    custom = parse_custom_code(site.custom_code)
    passes = site.kind == "proxy" or _uses(custom, "proxy_pass")
    own = _proxy_settings(site) if passes else []
    replaced = {directive.name for directive in custom if directive.name not in _REPEATABLE}
    headers = _merge_headers(_headers(site) if passes else [], custom)
    simple = [directive for directive in custom if directive.name not in ("location", "proxy_set_header")]
    locations = [
        _location(directive, site, layout, headers, hsts) for directive in custom if directive.name == "location"
    ]
    if not any(
        directive.name == "location" and location_path(directive.arguments) == ("", "/") for directive in custom
    ):
        locations.append(Directive.of("location", "/", block=_handler(site, layout)))
    return [
        *([_NO_CIRCLE] if site.kind == "proxy" else ()),
        *(directive for directive in own if directive.name not in replaced),
        *headers,
        *([Directive.of("proxy_hide_header", "Strict-Transport-Security"), _HSTS] if hsts else ()),
        *simple,
        *locations,
    ]


def _proxy_settings(site: Site) -> list[Directive]:
    settings = [
        Directive.of("client_max_body_size", number(site.client_max_body_size)),
        Directive.of("proxy_connect_timeout", fields.seconds(site.connect_timeout)),
        Directive.of("proxy_read_timeout", fields.seconds(site.read_timeout)),
        Directive.of("proxy_send_timeout", fields.seconds(site.read_timeout)),
    ]
    if site.target.path:
        # An internal redirect to a path of the upstream would ask for the first path again.
        settings.append(Directive.of("proxy_ignore_headers", "X-Accel-Redirect"))
    return settings


def _headers(site: Site) -> list[Directive]:
    connection = "$lyttle_connection" if upstream_servers(site) else "$lyttle_connection_once"
    if not site.websocket:
        connection = "" if upstream_servers(site) else "close"
    values = {
        "Host": "$lyttle_host",
        "X-Real-IP": "$remote_addr",
        # What a client says of itself is replaced, not appended to; real_ip knows whom to believe.
        "X-Forwarded-For": "$remote_addr",
        "X-Forwarded-Host": "$lyttle_host",
        "X-Forwarded-Port": "$lyttle_forwarded_port",
        "X-Forwarded-Proto": "$lyttle_scheme",
        "Forwarded": "",
        "Proxy": "",  # CVE-2016-5385
        "CDN-Loop": "$lyttle_cdn_loop",
        "Upgrade": "$lyttle_upgrade" if site.websocket else "",
        "Connection": connection,
    }
    return [Directive.of("proxy_set_header", name, value) for name, value in values.items()]


def _merge_headers(inherited: Sequence[Directive], own: Sequence[Directive]) -> list[Directive]:
    """`inherited` with the proxy_set_header of `own` in place of those for the same header."""
    mine = [directive for directive in own if directive.name == "proxy_set_header"]
    names = {directive.arguments[0].lower() for directive in mine if directive.arguments}
    return [*(header for header in inherited if header.arguments[0].lower() not in names), *mine]


def _location(location: Directive, site: Site, layout: Layout, headers: Sequence[Directive], hsts: bool) -> Directive:
    """A custom location, completed: NGINX drops inherited headers as soon as a location sets one of its own."""
    block = location.block or ()
    merged = _merge_headers(headers, block)
    body: list[Directive] = []
    if any(directive.name == "proxy_set_header" for directive in block):
        body += merged
    if hsts and any(directive.name == "add_header" for directive in block):
        body.append(_HSTS)
    body += [directive for directive in block if directive.name not in ("location", "proxy_set_header", "proxy_pass")]
    passes = [directive for directive in block if directive.name == "proxy_pass"]
    names = {directive.name for directive in block}
    if passes:
        body += _custom_pass(location, passes[0], site, layout, names)
    elif not (site.kind == "redirect" and "return" in names):
        body += _handler(site, layout)
    body += [_location(inner, site, layout, merged, hsts) for inner in block if inner.name == "location"]
    return Directive.of("location", *location.arguments, block=body)


def _handler(site: Site, layout: Layout) -> list[Directive]:
    """What a location of the site does with a request: pass it to the target, or send the client there."""
    target = site.target
    prefix = fields.path(target)
    if site.kind == "redirect":
        default = {"http": 80, "https": 443}[fields.scheme(target)]
        place = fields.host(target) if target.port == default else fields.authority(target)
        code = fields.redirect_code(site.redirect_code)
        return [Directive.of("return", code, f"{target.scheme}://{place}{prefix}$request_uri")]

    base = f"{fields.scheme(target)}://{fields.authority(target)}$lyttle_nothing"
    if upstream_servers(site):
        base = f"{fields.scheme(target)}://{upstream_name(site)}"
    if not prefix:
        return [*_tls(site, target, layout), Directive.of("proxy_pass", base)]
    if _uses(parse_custom_code(site.custom_code), "rewrite", "error_page"):
        # The path was changed on purpose, so it cannot be the client's own bytes that go on.
        return [*_tls(site, target, layout), _replace_prefix("", target.path), Directive.of("proxy_pass", base)]
    base = base.removesuffix("$lyttle_nothing")
    return [*_tls(site, target, layout), Directive.of("proxy_pass", f"{base}{prefix}$request_uri")]


def _custom_pass(location: Directive, given: Directive, site: Site, layout: Layout, names: set[str]) -> list[Directive]:
    """The `proxy_pass` of a custom location: its name is resolved at run time too."""
    scheme, host, port, path = parse_pass(given)
    target = Target(scheme, "127.0.0.1" if host == "localhost" else host, port)
    url = f"{scheme}://{fields.authority(target)}" + ("" if target.is_address else "$lyttle_nothing")
    result = [directive for directive in _tls(site, target, layout) if directive.name not in names]
    if path is not None:
        result.append(_replace_prefix(location_path(location.arguments)[1], path))
    return [*result, Directive.of("proxy_pass", url)]


def _replace_prefix(old: str, new: str) -> Directive:
    """A rewrite that puts the percent-encoded path `new` in place of the literal prefix `old`."""
    decoded = unquote(new)
    if "?" in decoded or "$" in decoded:
        raise UnsafeValue(f"{new!r} cannot stand before a rewritten path")
    literal(decoded)
    return Directive.of("rewrite", f"(?s)^{re.escape(old)}(.*)$", f"{decoded}$1", "break")


def _tls(site: Site, target: Target, layout: Layout) -> list[Directive]:
    """Verification of a TLS upstream is on for all; this is the name to verify, or why it is off here."""
    off = Directive.of("proxy_ssl_verify", "off")
    if target.scheme == "https":
        name = Directive.of("proxy_ssl_name", fields.host(target))
        return [name] if site.verify_upstream_tls else [name, off]
    # Before 1.23.1 each location whose target holds a variable reads all roots anew, TLS or not: 10 ms each.
    return [off] if layout.nginx_version < (1, 23, 1) else []


def _uses(directives: Iterable[Directive], *names: str) -> bool:
    return any(directive.name in names or _uses(directive.block or (), *names) for directive in directives)

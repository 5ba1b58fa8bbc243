"""Custom code: NGINX directives that an operator adds to one site.

Where it stands: in the site's `server` block, as one would write it there, so it holds for the whole site on HTTP and
HTTPS alike. A directive that LyttleOps writes too (proxy_read_timeout, client_max_body_size, one header of
proxy_set_header …) takes the place of LyttleOps' own. A `location` block without a `proxy_pass` leads to the site's
own target and keeps the headers that LyttleOps sets; `location /` takes the place of LyttleOps' own. A `proxy_pass`
inside a location takes a URL without variables, its name is resolved at run time, and a path replaces the location's
prefix as in plain NGINX. Redirects to HTTPS and ACME challenges come before custom code.

What is accepted is an allow-list, applied to what NGINX's own grammar (crossplane's lexer) makes of the text, and
NGINX never gets the text itself: it gets what was understood, written anew with every argument quoted. (Not with
crossplane.build: that quotes with Python's repr, which NGINX reads differently.) Nothing on the list reads or writes
files, loads code, opens UNIX sockets, or can take ACME challenges away from LyttleOps.
"""

import difflib
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

import crossplane
from crossplane.errors import NgxParserBaseException

from lyttle_ops.nginx.errors import CustomCodeError
from lyttle_ops.nginx.syntax import Directive, build, meaning

Place = Literal["server", "location", "if", "limit_except"]

ACME_PREFIX = "/.well-known/acme-challenge"
RESERVED = "lyttle_"  # NGINX variables and names that are LyttleOps' own
MAXIMUM = 65_536  # characters

_REWRITE = frozenset({"break", "return", "rewrite", "set"})
_ACCESS = frozenset({"allow", "deny"})
_NAMES = """
    absolute_redirect add_header add_trailer allow auth_request auth_request_set charset chunked_transfer_encoding
    client_body_buffer_size client_body_timeout client_max_body_size default_type deny error_page etag expires
    gunzip gzip gzip_buffers gzip_comp_level gzip_http_version gzip_min_length gzip_proxied gzip_types gzip_vary
    if_modified_since keepalive_requests keepalive_timeout limit_rate limit_rate_after log_not_found max_ranges
    port_in_redirect proxy_buffer_size proxy_buffering proxy_buffers proxy_busy_buffers_size proxy_connect_timeout
    proxy_cookie_domain proxy_cookie_flags proxy_cookie_path proxy_force_ranges proxy_hide_header proxy_http_version
    proxy_ignore_client_abort proxy_ignore_headers proxy_intercept_errors proxy_limit_rate proxy_max_temp_file_size
    proxy_method proxy_next_upstream proxy_next_upstream_timeout proxy_next_upstream_tries proxy_pass_header
    proxy_pass_request_body proxy_pass_request_headers proxy_read_timeout proxy_redirect proxy_request_buffering
    proxy_send_timeout proxy_set_header proxy_socket_keepalive proxy_ssl_name proxy_ssl_server_name
    proxy_temp_file_write_size satisfy send_timeout server_name_in_redirect sub_filter sub_filter_last_modified
    sub_filter_once sub_filter_types tcp_nodelay
"""
_COMMON = frozenset(_NAMES.split())
ALLOWED: dict[Place, frozenset[str]] = {
    "server": _COMMON | _REWRITE | {"if", "location"},
    "location": _COMMON | _REWRITE | {"if", "internal", "limit_except", "location", "proxy_pass"},
    "if": _REWRITE | {"add_header", "expires", "limit_rate", "gzip", "error_page"},
    "limit_except": _ACCESS,
}
_BLOCKS: dict[str, Place] = {"location": "location", "if": "if", "limit_except": "limit_except"}
# Why a name that people do try is not on the list.
_REACH_FILES = """
    access_log alias auth_basic auth_basic_user_file client_body_in_file_only client_body_temp_path dav_methods
    error_log fastcgi_pass include index load_module proxy_cache proxy_cache_path proxy_ssl_certificate
    proxy_ssl_certificate_key proxy_ssl_trusted_certificate proxy_store proxy_temp_path root ssl_certificate
    ssl_certificate_key try_files uwsgi_pass
"""
_SET_FOR_ALL = "events http listen real_ip_header resolver server server_name set_real_ip_from upstream"
_URL = re.compile(
    r"(?P<scheme>https?)://(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?(?P<path>/[^?#$]*)?"
)
_END = "end_of_custom_code"


def describe_allowed() -> str:
    """The allow-list in words, for the API's documentation."""
    server, location = ALLOWED["server"], ALLOWED["location"]
    assert server < location
    return "\n\n".join(
        (
            f"For the whole site: {', '.join(sorted(server))}.",
            f"Inside location these too: {', '.join(sorted(location - server))}.",
            f"Inside if only: {', '.join(sorted(ALLOWED['if']))}.",
            f"Inside limit_except only: {', '.join(sorted(ALLOWED['limit_except']))}.",
        )
    )


def check_custom_code(text: str) -> str:
    """The code as it will stand in the configuration. Raises CustomCodeError, which names the line and the reason."""
    return build(parse_custom_code(text))


@lru_cache(maxsize=4096)
def parse_custom_code(text: str) -> tuple[Directive, ...]:
    """The directives of `text`, each one allowed where it stands. Raises CustomCodeError."""
    if not text.strip():
        return ()
    if len(text) > MAXIMUM:
        raise CustomCodeError(f"custom code is limited to {MAXIMUM} characters")
    text = text.replace("\r\n", "\n")
    for line, content in enumerate(text.split("\n"), 1):
        unwanted = next((character for character in content if _is_unwanted(character)), None)
        if unwanted:
            raise CustomCodeError(f"line {line}: the character {unwanted!r} is not allowed in custom code", line)
    tokens = _tokens(text)
    directives = tuple(_block(tokens, 0))
    if next(tokens, None) is not None or not directives or directives[-1].name != _END:
        last = text.rstrip().count("\n") + 1
        raise CustomCodeError(f'line {last}: the code ends too early: a ";", a quote or a "}}" is missing', last)
    directives = directives[:-1]
    _check(directives, "server")
    return directives


def location_path(arguments: tuple[str, ...]) -> tuple[str, str]:
    """The modifier (one of = ^~ ~ ~* @ or empty) and the path or expression of a `location`, as NGINX splits them."""
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    found = re.match(r"(=|\^~|~\*|~|@)?(.*)", arguments[0], re.DOTALL)
    return (found[1] or "", found[2]) if found else ("", "")


def _is_unwanted(character: str) -> bool:
    # NGINX separates words at space, tab and line ends only; crossplane at whatever Unicode calls white.
    return character not in " \t" and (
        character.isspace() or unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs")
    )


def _tokens(text: str) -> Iterator[tuple[str, int, bool]]:
    # The end mark shows whether a quote or a semicolon is missing: then it is no directive of its own.
    # crossplane reads files only; a memory file has no name anyone could meet.
    descriptor = os.memfd_create("custom-code")
    try:
        os.write(descriptor, f"{text}\n{_END};\n".encode())
        tokens = list(crossplane.lex(f"/proc/self/fd/{descriptor}"))
    except NgxParserBaseException as exc:
        line = min(exc.lineno or 1, text.count("\n") + 1)
        raise CustomCodeError(f"line {line}: {exc.strerror}", line) from None
    finally:
        os.close(descriptor)
    return iter([token for token in tokens if token[2] or not token[0].startswith("#")])


def _block(tokens: Iterator[tuple[str, int, bool]], depth: int) -> Iterator[Directive]:
    if depth > 8:
        raise CustomCodeError("blocks are nested too deeply in the custom code")
    words: list[str] = []
    first = 1
    for word, line, quoted in tokens:
        if quoted or word not in ("{", "}", ";"):
            first = first if words else line
            words.append(meaning(word))
        elif word == "}":
            if words:
                raise CustomCodeError(f'line {first}: "{words[0]}" is not ended by ";"', first)
            return
        elif not words:
            raise CustomCodeError(f'line {line}: unexpected "{word}"', line)
        else:
            block = tuple(_block(tokens, depth + 1)) if word == "{" else None
            name, arguments = words[0], tuple(words[1:])
            yield Directive(name, _condition(arguments, first) if name == "if" else arguments, block, first)
            words = []
    if words:
        raise CustomCodeError(f'line {first}: "{words[0]}" is not ended by ";", or a quote in it is not closed', first)


def _condition(arguments: tuple[str, ...], line: int) -> tuple[str, ...]:
    """The words between an if's parentheses."""
    if not arguments or not arguments[0].startswith("(") or not arguments[-1].endswith(")"):
        raise CustomCodeError(f"line {line}: the condition of an if stands in parentheses", line)
    if len(arguments) == 1:
        words: tuple[str, ...] = (arguments[0][1:-1],)
    else:
        words = (arguments[0][1:], *arguments[1:-1], arguments[-1][:-1])
    if words and not words[0]:
        words = words[1:]
    if words and not words[-1] and arguments[-1] == ")":
        words = words[:-1]
    if not words:
        raise CustomCodeError(f"line {line}: an if needs a condition", line)
    return words


def _check(directives: tuple[Directive, ...], place: Place) -> None:
    for directive in directives:
        name, line = directive.name, directive.line
        if name not in ALLOWED[place]:
            raise CustomCodeError(_refusal(name, line, place), line)
        for word in directive.arguments:
            if RESERVED in word.lower():
                raise CustomCodeError(f'line {line}: names that contain "{RESERVED}" are reserved for LyttleOps', line)
        if (directive.block is None) == (name in _BLOCKS):
            wants = "needs a { } block" if name in _BLOCKS else "takes no { } block"
            raise CustomCodeError(f'line {line}: "{name}" {wants}', line)
        _check_values(directive)
        if directive.block is not None:
            _check(directive.block, _BLOCKS[name])


def _check_values(directive: Directive) -> None:
    name, words, line = directive.name, directive.arguments, directive.line
    if name == "if" and any(re.fullmatch(r"!?-[fdex]", word) for word in words[:1]):
        raise CustomCodeError(f"line {line}: an if must not test files ({words[0]})", line)
    if name == "location":
        if not 1 <= len(words) <= 2:
            raise CustomCodeError(f"line {line}: a location takes a modifier and a path", line)
        modifier, path = location_path(words)
        if modifier not in ("", "=", "^~", "~", "~*", "@"):
            raise CustomCodeError(f'line {line}: "{modifier}" is not a modifier of location', line)
        if modifier in ("", "=", "^~") and not path.startswith("/"):
            raise CustomCodeError(f'line {line}: the path of a location begins with "/"', line)
        if not modifier.startswith("~") and path.startswith(ACME_PREFIX):
            raise CustomCodeError(f"line {line}: {ACME_PREFIX}/ belongs to certificate issuing", line)
        for inner in directive.block or ():
            if inner.name == "proxy_pass" and modifier.startswith(("~", "@")) and parse_pass(inner)[3] is not None:
                raise CustomCodeError(
                    f"line {inner.line}: proxy_pass takes no path here, as this location has no prefix to replace",
                    inner.line,
                )
    if name == "proxy_pass":
        path = parse_pass(directive)[3] or ""
        if any(character in unquote(path) for character in "?$"):
            raise CustomCodeError(f"line {line}: the path of proxy_pass cannot hold an encoded ? or $", line)


def parse_pass(directive: Directive) -> tuple[Literal["http", "https"], str, int, str | None]:
    """Scheme, host (IPv6 without brackets), port and path (None: none given) of a proxy_pass. CustomCodeError."""
    found = _URL.fullmatch(directive.arguments[0]) if len(directive.arguments) == 1 else None
    if found is None or (found["host"] or "").lower() == "unix" or not 0 < int(found["port"] or 80) < 65536:
        raise CustomCodeError(
            f"line {directive.line}: proxy_pass takes a URL without variables, no UNIX socket; "
            "accepted: http://name:8080 or https://name/path/",
            directive.line,
        )
    scheme: Literal["http", "https"] = "https" if found["scheme"] == "https" else "http"
    port = int(found["port"] or {"http": 80, "https": 443}[scheme])
    return scheme, (found["ip6"] or found["host"]).lower(), port, found["path"]


def _refusal(name: str, line: int, place: Place) -> str:
    everywhere = frozenset().union(*ALLOWED.values())
    if name in everywhere:
        places = " or ".join(place for place, names in ALLOWED.items() if name in names)
        reason = f"is not allowed directly in {place}, only in {places}"
    elif name in _REACH_FILES.split() or name.endswith(("_pass", "_path", "_file")):
        reason = "is not allowed in custom code, because it reaches files, keys or sockets of the node"
    elif name in _SET_FOR_ALL.split() or name.startswith("ssl_"):
        reason = "is not allowed in custom code, because LyttleOps sets it for all sites"
    else:
        reason = "is not allowed in custom code"
    near = difflib.get_close_matches(name, sorted(ALLOWED[place]), 1, 0.8)
    hint = f"; did you mean {near[0]}?" if near and name not in everywhere else ""
    return f'line {line}: "{name}" {reason}{hint} (/openapi lists what is, under nginx_custom_code)'

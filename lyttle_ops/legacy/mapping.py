"""A LyttleNGINX entry as an entry of ours that behaves the same.

What LyttleNGINX gave every host stands in its generated configuration: HTTP beside HTTPS without a redirect,
`return 301 TARGET;` for a REDIRECT, a day's read time-out, no check of an upstream's certificate, bodies of 2000 MB.
"""

from typing import Any

from pydantic import ValidationError

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.legacy.source import Entry
from lyttle_ops.proxies.model import ProxyInput
from lyttle_ops.proxies.target import parse_target

_READ_TIMEOUT = 86_400  # seconds
_BODY = 2000 * 1024 * 1024  # bytes
_SAME_PATH = ("$request_uri", "$uri$is_args$args", "$uri")  # at a target's end: the path that was asked for


class CannotImport(LyttleOpsError):
    """This row cannot be imported."""


def to_input(entry: Entry) -> tuple[ProxyInput, tuple[str, ...]]:
    """The entry, and what is different from before. Raises CannotImport with every reason."""
    fields: dict[str, Any] = {
        "domains": entry.domains,
        "proxy_pass_host": entry.proxy_pass_host.strip(),
        "type": entry.type,
        "ssl": entry.ssl,
        "nginx_custom_code": entry.nginx_custom_code.strip(),
        "force_https": False,
        "read_timeout": _READ_TIMEOUT,
        "client_max_body_size": _BODY,
    }
    warnings: list[str] = []
    if entry.type == "REDIRECT":
        _redirect(fields)
    else:
        _proxy(fields, warnings)
    try:
        return ProxyInput.model_validate(fields), tuple(warnings)
    except ValidationError as exc:
        raise CannotImport("; ".join(map(_reason, exc.errors()))) from None


def _redirect(fields: dict[str, Any]) -> None:
    fields["redirect_code"] = 301
    target = fields["proxy_pass_host"]
    for ending in _SAME_PATH:
        if target.endswith(ending):
            fields["proxy_pass_host"] = target.removesuffix(ending)
            return
    try:
        parse_target(target)
    except ValueError:
        return  # the model says what is wrong with it
    # Ours keep the path that was asked for; this one led every path to the same place.
    fields["nginx_custom_code"] = f'{fields["nginx_custom_code"]}\nreturn 301 "{target}";'.strip()


def _proxy(fields: dict[str, Any], warnings: list[str]) -> None:
    target = fields["proxy_pass_host"]
    if target.lower().startswith("https://"):
        fields["verify_upstream_tls"] = False
    path = target.partition("://")[2].partition("/")[2]
    if path and not path.endswith("/"):
        warnings.append(f"/x is passed on as /{path}/x now; LyttleNGINX made /{path}x of it")


def _reason(error: Any) -> str:
    message = str(error["ctx"]["error"]) if error["type"] == "value_error" else str(error["msg"])
    place = ".".join(str(part) for part in error["loc"][:1])
    return f"{place}: {message}" if place else message

"""A proxy entry: what a person asks for, checked once here, and the row it becomes.

Every field ends in one normal form, or in an error that names the field and says what is accepted. Nothing a
person writes reaches an NGINX file except through `to_site`, as parsed values.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from lyttle_ops.nginx.custom_code import check_custom_code, describe_allowed
from lyttle_ops.nginx.errors import CustomCodeError, UnsafeValue
from lyttle_ops.nginx.model import Site
from lyttle_ops.proxies.domains import merge_domains, normalise_domain, split_domains
from lyttle_ops.proxies.target import parse_target, write_target

LONGEST_CODE = 65_536  # characters of custom code
MOST_BODY = 1 << 40  # bytes: 1 TiB


def _check_code(text: str) -> str:
    # The text itself is kept, with its comments; the renderer writes what the parser understood.
    try:
        check_custom_code(text)
    except (CustomCodeError, UnsafeValue) as exc:
        raise ValueError(str(exc)) from None
    return text


ProxyType = Literal["PROXY", "REDIRECT"]
Domains = Annotated[
    tuple[Annotated[str, AfterValidator(normalise_domain)], ...],
    BeforeValidator(split_domains, json_schema_input_type=str | list[str]),
    AfterValidator(merge_domains),
]
URL = Annotated[str, AfterValidator(lambda text: write_target(parse_target(text)))]
Code = Annotated[str, Field(max_length=LONGEST_CODE), AfterValidator(_check_code)]


class ProxyInput(BaseModel):
    """A proxy entry as a person writes it. Types are JSON's own: true, not "true"; 60, not "60"."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    domains: Domains = Field(
        description="one name, a list separated by ; or a JSON list; no wildcards, no IP addresses, at most 100",
        examples=["test.example.com", ["example.com", "www.example.com"]],
    )
    proxy_pass_host: URL = Field(
        description="where requests go: http or https, host, optional port, optional path",
        examples=["http://backend:8080"],
    )
    type: ProxyType = Field("PROXY", description="PROXY passes requests on; REDIRECT answers with redirect_code")
    ssl: bool = Field(False, description="serve HTTPS with a certificate for all of the domains")
    enabled: bool = Field(True, description="false keeps the entry and serves nothing for it")
    nginx_custom_code: Code = Field(
        "", description=f"NGINX directives for this host, from this list:\n\n{describe_allowed()}"
    )
    force_https: bool = Field(True, description="redirect HTTP to HTTPS once the certificate is there; needs ssl")
    hsts: bool = Field(False, description="send Strict-Transport-Security; needs ssl")
    websocket: bool = Field(True, description="pass Upgrade requests on")
    client_max_body_size: int = Field(
        104_857_600, ge=0, le=MOST_BODY, description="largest request body in bytes; 0: unlimited"
    )
    connect_timeout: int = Field(10, ge=1, le=75, description="seconds to connect to the target")
    read_timeout: int = Field(60, ge=1, le=86_400, description="seconds between two reads from the target")
    verify_upstream_tls: bool = Field(True, description="check the certificate of an https target")
    redirect_code: Literal[301, 302, 303, 307, 308] = Field(308, description="status of a REDIRECT's answers")

    @model_validator(mode="after")
    def _check_whole(self) -> "ProxyInput":
        target = parse_target(self.proxy_pass_host)
        if self.type == "REDIRECT" and target.host in self.domains and target.port in (80, 443):
            raise ValueError(f"proxy_pass_host: {target.host} is one of the domains, so it would redirect to itself")
        if self.ssl:
            for domain in self.domains:
                if "." not in domain:
                    raise ValueError(f"domains: {domain!r} has no dot, and no CA certifies such a name; set ssl false")
        return self


def _drop_defaults(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


def _first_line(field: FieldInfo) -> str:
    # The list of directives stands in the document once, with ProxyInput.
    line, separator, _ = (field.description or "").partition("\n")
    return line.replace("from this list:", "as in ProxyInput") if separator else line


_changes: dict[str, Any] = {
    name: Annotated[(field.annotation, *field.metadata, Field(default=None, description=_first_line(field)))]
    for name, field in ProxyInput.model_fields.items()
}
# The same fields, none required: what is absent stays as it is. What results is checked as a ProxyInput.
ProxyChanges = create_model(
    "ProxyChanges",
    __config__=ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra=_drop_defaults),
    __doc__="Fields of a proxy entry to change; what is absent stays as it is.",
    **_changes,
)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A row of `proxies`."""

    id: int
    type: ProxyType
    domains: tuple[str, ...]  # A-labels, sorted
    proxy_pass_host: str  # URL in normal form
    ssl: bool
    enabled: bool
    nginx_custom_code: str
    force_https: bool
    hsts: bool
    websocket: bool
    client_max_body_size: int  # bytes, 0 = unlimited
    connect_timeout: int  # seconds
    read_timeout: int  # seconds
    verify_upstream_tls: bool
    redirect_code: int
    revision: int  # cluster_state.revision of its last change
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Proxy":
        """The record in a row that may hold more columns than these."""
        values = {name: row[name] for name in cls.__slots__}
        return cls(**{**values, "domains": tuple(values["domains"])})

    def fields(self) -> dict[str, Any]:
        """What a person may set, as ProxyInput takes it."""
        return {name: getattr(self, name) for name in ProxyInput.model_fields}


def warnings_about(proxy: Proxy, written: Collection[str]) -> tuple[str, ...]:
    """What was asked for and has no effect; `written` names the fields the person wrote.

    force_https is true by default, so that an entry is ready for ssl; only who writes it expects something of it.
    """
    found = []
    if not proxy.ssl:
        if proxy.hsts:
            found.append("hsts has no effect without ssl: nothing is served over HTTPS; set ssl true")
        if proxy.force_https and "force_https" in written:
            found.append("force_https has no effect without ssl: there is no HTTPS to redirect to; set ssl true")
    return tuple(found)


def to_site(proxy: Proxy, tls: Mapping[str, str]) -> Site:
    """What NGINX renders for `proxy`; `tls` maps domains to certificate names, for those that have one."""
    return Site(
        id=proxy.id,
        domains=proxy.domains,
        kind="redirect" if proxy.type == "REDIRECT" else "proxy",
        target=parse_target(proxy.proxy_pass_host),
        tls={domain: tls[domain] for domain in proxy.domains if proxy.ssl and domain in tls},
        ssl=proxy.ssl,
        force_https=proxy.force_https,
        hsts=proxy.hsts,
        websocket=proxy.websocket,
        client_max_body_size=proxy.client_max_body_size,
        connect_timeout=proxy.connect_timeout,
        read_timeout=proxy.read_timeout,
        verify_upstream_tls=proxy.verify_upstream_tls,
        redirect_code=proxy.redirect_code,
        custom_code=proxy.nginx_custom_code,
    )

"""What one NGINX serves, as pure data. Knows neither proxy entries nor certificates of the cluster."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Target:
    """Where a site leads: a parsed URL, never pasted raw.

    `host` is a lower-case name or an IP address (IPv6 without brackets); `path` is percent-encoded, begins with a
    slash and does not end with one, or is empty. A path is a prefix: /base makes /x into /base/x.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str = ""

    @property
    def is_address(self) -> bool:
        """True when `host` is an IP address, which needs no resolution."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Site:
    """One entry: domains and what is done with their requests.

    `tls` maps a domain to the certificate (file stem in certs/) that serves it; domains without one are served over
    HTTP only. `ssl` says that HTTPS is wanted, whether or not a certificate is there yet: such a site answers ACME
    challenges itself, one without passes them to its upstream. A TLS upstream given as an IP address can be verified
    only when its certificate names that address as its common name (NGINX compares DNS names, not addresses).
    """

    id: int
    domains: tuple[str, ...]
    kind: Literal["proxy", "redirect"]
    target: Target
    tls: Mapping[str, str] = field(default_factory=dict)
    ssl: bool = False
    force_https: bool = True
    hsts: bool = False
    websocket: bool = True
    client_max_body_size: int = 104_857_600  # bytes; 0: unlimited
    connect_timeout: int = 10  # seconds
    read_timeout: int = 60  # seconds between two reads, and between two writes
    verify_upstream_tls: bool = True
    redirect_code: int = 308
    custom_code: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is the same for every release of one instance. The listen lines never change while NGINX runs:
    a `listen` that one reload drops cannot come back.
    """

    folder: Path  # the instance's run directory, absolute
    http_listen: tuple[str, ...]
    https_listen: tuple[str, ...]
    name_servers: tuple[str, ...]
    instance_id: str
    node_name: str
    nginx_version: tuple[int, int, int]
    trusted_load_balancers: tuple[str, ...] = ()
    proxy_protocol: bool = False
    access_log: bool = True
    json_log: bool = True
    task_id: str = ""  # told to whoever asks which instance answers; "": not told
    thumbprint: str = ""  # of the ACME account key; "": none yet, challenges are answered with 404
    user: str = ""  # account of the workers; only where NGINX starts as root
    open_files: int = 20_000  # limit of a worker; a connection that is passed on takes two
    trusted_certificates: str = "/etc/ssl/certs/ca-certificates.crt"  # roots that sign TLS upstreams


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """What stands in certs/NAME.pem and certs/NAME.key. A changed certificate has a new name."""

    chain_pem: str
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Applied:
    """What `NGINX.apply` came to."""

    release: str  # hash of the release that is live
    reloaded: bool  # False: nothing changed, or NGINX is not running
    quarantined: Mapping[int, str]  # site id -> why it is left out, in NGINX's own words

"""The records of this room: what is wanted, ordered, served and shown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

from lyttle_ops.errors import LyttleOpsError


class CertificateNotFound(LyttleOpsError):
    """There is no certificate with this id."""


class CertificateNotWanted(LyttleOpsError):
    """No enabled ssl entry wants this certificate."""


class CannotCertify(LyttleOpsError):
    """These domains cannot be certified with HTTP-01."""


class Outcome(StrEnum):
    """What one call of ensure_certificate came to."""

    READY = "ready"  # a good certificate is there; nothing was done
    BUSY = "busy"  # another node or thread is at it
    WAITING = "waiting"  # an earlier failure forbids a try before next_try_at
    ISSUED = "issued"  # a new certificate was issued and stored
    FAILED = "failed"  # the CA refused or could not be reached; stored with the certificate
    STOPPED = "stopped"  # this node is stopping; whoever comes next resumes the order


class OrderState(StrEnum):
    """How far an order got; written before the step it names, so that the next one resumes there."""

    INTENT = "intent"  # key and CSR are stored; newOrder may or may not have been sent
    CREATED = "created"  # the order's URL is known; domains are being proven
    READY = "ready"  # all domains are proven
    PROCESSING = "processing"  # finalize may or may not have been sent
    ISSUED = "issued"
    FAILED = "failed"  # the CA said no
    ABANDONED = "abandoned"  # it cannot be resumed: the CA lost it, or another CA or master key is used now


@dataclass(frozen=True, slots=True)
class Due:
    """A certificate that can be worked on now. `renewal`: one is served already."""

    id: int
    domains: tuple[str, ...]
    renewal: bool
    requested: bool  # a person asked for the renewal


@dataclass(frozen=True, slots=True)
class Order:
    """A row of the ledger."""

    id: int
    certificate_id: int
    state: OrderState
    directory_url: str
    order_url: str | None
    node_name: str
    key_id: str
    private_key: bytes = field(repr=False)  # encrypted
    csr_pem: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Issued:
    """What a CA handed out. `serial` is lower-case hex without leading zeros."""

    chain_pem: str = field(repr=False)
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Usable:
    """A served certificate with its key in clear (PEM, PKCS #8). Never logged, never sent."""

    id: int
    order_id: int
    domains: tuple[str, ...]
    serial: str
    chain_pem: str = field(repr=False)
    key_pem: bytes = field(repr=False)
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Installed:
    """On how many of the active nodes a real handshake showed the current certificate."""

    nodes: int
    of: int
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OrderView:
    """One order for people; no key, no CSR."""

    id: int
    state: OrderState
    directory_url: str
    node_name: str
    serial: str | None
    not_before: datetime | None
    not_after: datetime | None
    error: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class CertificateView:
    """One certificate for people.

    `state` is pending | issuing | issued | renewing | failed; `stage` says the same in words. `wanted`: an
    enabled ssl proxy has exactly these domains. `next_try_at` is None when nothing holds a try up.
    `issuer` and `orders` are filled by get_certificate only.
    """

    id: int
    domains: tuple[str, ...]
    state: str
    stage: str
    wanted: bool
    serial: str | None
    issuer: str | None
    not_before: datetime | None
    not_after: datetime | None
    renew_at: datetime | None
    renewal_requested_at: datetime | None
    attempts: int
    last_error: str | None
    last_error_at: datetime | None
    next_try_at: datetime | None
    installed: Installed
    created_at: datetime
    orders: tuple[OrderView, ...] = ()


@dataclass(frozen=True, slots=True)
class Renewal:
    """What came of a person's wish to renew; `message` says it in words."""

    certificate: CertificateView
    message: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were removed."""

    certificates: int
    orders: int


def domain_set(domains: Iterable[str]) -> tuple[str, ...]:
    """Domains as the database keeps them: sorted, no duplicates. Raises CannotCertify."""
    names = tuple(sorted(set(domains)))
    if not names:
        raise CannotCertify("a certificate needs at least one domain")
    for name in names:
        if name.startswith("*."):
            # RFC 8555 8.3: HTTP-01 proves one host; a wildcard needs DNS-01.
            raise CannotCertify(f"{name}: a wildcard cannot be proven over HTTP; list its names one by one")
    return names


def lock_name(domains: Sequence[str]) -> str:
    """The cluster lock that orders for this set of domains are made under."""
    return "cert:issue:" + sha256(";".join(sorted(domains)).encode()).hexdigest()

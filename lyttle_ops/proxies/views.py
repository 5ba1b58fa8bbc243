"""Proxy entries as the API shows them: each with its certificate and with the nodes that serve it.

A page costs two statements, whatever its length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from lyttle_ops.db.connection import Connection
from lyttle_ops.proxies.model import Proxy
from lyttle_ops.proxies.store import GREATEST_ID, ProxyNotFound, queries

LiveState = Literal["disabled", "waiting", "quarantined", "live"]
CertificateState = Literal["pending", "issuing", "issued", "renewing", "failed"]


@dataclass(frozen=True, slots=True)
class CertificateSummary:
    """What there is of the certificate an ssl entry wants."""

    id: int | None  # of /certificates; None until some node has seen the entry
    state: CertificateState
    not_after: datetime | None  # of the certificate that is served
    attempts: int  # failures since the last success
    last_error: str | None  # the CA's own words
    next_try_at: datetime | None  # None when nothing holds a try up


@dataclass(frozen=True, slots=True)
class Live:
    """How far an entry's newest version has come.

    `state`: disabled (no node is to serve it); quarantined (NGINX refuses it on some node); live (on every active
    node); waiting (neither).
    """

    state: LiveState
    nodes: int  # active nodes that serve it; 0 for a disabled entry
    of: int  # active nodes
    waiting: tuple[str, ...]  # names of active nodes that have not taken up the newest version yet
    errors: Mapping[str, str]  # node name -> NGINX's own message, where the entry is quarantined


@dataclass(frozen=True, slots=True)
class ProxyView:
    """An entry with its certificate (None without ssl) and its nodes."""

    proxy: Proxy
    certificate: CertificateSummary | None
    live: Live


@dataclass(frozen=True, slots=True)
class ProxyPage:
    """A part of the list and how many entries the whole list has."""

    items: tuple[ProxyView, ...]
    total: int


def page_of_proxies(connection: Connection, domain: str | None = None, limit: int = 100, offset: int = 0) -> ProxyPage:
    """Entries from `offset` on, oldest first; with `domain` (in normal form) only the one that has it."""
    rows = connection.execute(queries.list_proxies, {"domain": domain, "limit": limit, "offset": offset}).fetchall()
    progress = connection.execute(queries.node_progress).fetchall()
    views = tuple(_view(row, progress) for row in rows if row["id"] is not None)
    return ProxyPage(views, rows[0]["total"])


def view_of_proxy(connection: Connection, proxy_id: int) -> ProxyView:
    """One entry. Raises ProxyNotFound."""
    row = None
    if proxy_id <= GREATEST_ID:
        row = connection.execute(queries.get_proxy_view, {"id": proxy_id}).fetchone()
    if row is None:
        raise ProxyNotFound(proxy_id)
    return _view(row, connection.execute(queries.node_progress).fetchall())


def _view(row: Mapping[str, Any], progress: list[dict[str, Any]]) -> ProxyView:
    proxy = Proxy.from_row(row)
    return ProxyView(proxy, _certificate(row) if proxy.ssl else None, _live(proxy, progress))


def _certificate(row: Mapping[str, Any]) -> CertificateSummary:
    # The same words as lyttle_ops.certificates gives; that room lies above this one.
    state: CertificateState = "pending"
    if row["certificate_ordered"] and not row["certificate_waits"]:
        state = "issuing" if row["not_after"] is None else "renewing"
    elif row["not_after"] is not None and not row["certificate_expired"]:
        state = "issued"
    elif row["attempts"] or row["certificate_expired"]:
        state = "failed"
    return CertificateSummary(
        id=row["certificate_id"],
        state=state,
        not_after=row["not_after"],
        attempts=row["attempts"] or 0,
        last_error=row["last_error"],
        next_try_at=row["next_try_at"] if row["certificate_waits"] else None,
    )


def _live(proxy: Proxy, progress: list[dict[str, Any]]) -> Live:
    # During an update a node has two instances behind one accept queue. The new one takes the queue only after
    # its release answered, so a node is where its furthest instance is.
    have: dict[str, bool] = {}
    errors: dict[str, str] = {}
    for instance in progress:
        node = instance["node"]
        message = instance["quarantined"].get(str(proxy.id))
        current = instance["applied_revision"] >= proxy.revision
        have[node] = have.get(node, False) or (current and message is None)
        if current and message is not None:
            errors[node] = message
    errors = {node: message for node, message in errors.items() if not have[node]} if proxy.enabled else {}
    nodes = sum(have.values()) if proxy.enabled else 0
    state: LiveState = "waiting"
    if not proxy.enabled:
        state = "disabled"
    elif errors:
        state = "quarantined"
    elif 0 < nodes == len(have):
        state = "live"
    return Live(
        state=state,
        nodes=nodes,
        of=len(have),
        waiting=tuple(node for node, done in have.items() if not done and node not in errors),
        errors=errors,
    )

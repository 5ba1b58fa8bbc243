"""Certificates as rows: what people see, what nodes serve and report, what is pruned."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from cryptography import x509

from lyttle_ops.certificates.model import (
    CertificateNotFound,
    CertificateNotWanted,
    CertificateView,
    Due,
    Installed,
    OrderState,
    OrderView,
    Pruned,
    Renewal,
)
from lyttle_ops.db import load_queries
from lyttle_ops.db.connection import Connection

queries = load_queries("lyttle_ops.certificates")

_STAGES = {
    "intent": "the order is being placed with the CA",
    "created": "the CA is checking the domains",
    "ready": "the domains are proven; the CA is about to be asked for the certificate",
    "processing": "the CA is issuing the certificate",
}


def list_certificates(connection: Connection) -> list[CertificateView]:
    """Every certificate, by domain; never key material."""
    return [_view(row) for row in connection.execute(queries.list_certificates, {"id": None})]


def get_certificate(connection: Connection, certificate_id: int) -> CertificateView:
    """One certificate with its issuer and its last 20 orders. Raises CertificateNotFound."""
    row = connection.execute(queries.list_certificates, {"id": certificate_id}).fetchone()
    if row is None:
        raise CertificateNotFound
    orders = tuple(
        OrderView(**{**order, "state": OrderState(order["state"])})
        for order in connection.execute(queries.list_orders, {"id": certificate_id})
    )
    return _view(row, orders, issuer=_issuer(row["chain_pem"]))


def request_renewal(connection: Connection, certificate_id: int) -> Renewal:
    """A person wants it renewed, or tried again, now; the leader does it.

    Several requests before the renewal is done are one, and so is one within ten seconds after it. Our own back-off
    ends; a rate limit of the CA does not. Raises CertificateNotFound and CertificateNotWanted.
    """
    asked = connection.execute(queries.request_renewal, {"id": certificate_id}).fetchone()
    view = get_certificate(connection, certificate_id)
    if asked is None:
        raise CertificateNotWanted(
            f"certificate {certificate_id} is not renewed, because no enabled entry with ssl has exactly the domains "
            f"{';'.join(view.domains)}: enable that entry or add one, and it is looked after by itself"
        )
    if asked["recent"]:
        message = "it was renewed within the last 10 seconds; no other order is made"
    elif asked["rate_limited"] and view.next_try_at:
        message = f"the CA's rate limit holds until {_time(view.next_try_at)}; it is tried again then"
    else:
        message = "the leader renews it now" if view.serial else "a node orders it now"
    return Renewal(view, message)


def pending(connection: Connection, leader: bool) -> list[Due]:
    """What can be worked on now, most urgent first; makes the rows of wanted certificates that are new."""
    return [
        Due(id=row["id"], domains=tuple(row["domains"]), renewal=row["renewal"], requested=row["requested"])
        for row in connection.execute(queries.pending, {"leader": leader})
    ]


def report_installed(connection: Connection, instance_id: UUID, seen: Sequence[tuple[int, str | None]]) -> None:
    """What handshakes on an instance showed: (order id, serial), the serial None where there was none."""
    shown = [(order_id, serial) for order_id, serial in seen if serial is not None]
    missing = [order_id for order_id, serial in seen if serial is None]
    if shown:
        connection.execute(
            queries.report_installed,
            {
                "instance_id": instance_id,
                "order_ids": [order_id for order_id, _ in shown],
                "serials": [serial for _, serial in shown],
            },
        )
    if missing:
        connection.execute(queries.report_missing, {"instance_id": instance_id, "order_ids": missing})


def prune(connection: Connection) -> Pruned:
    """Remove what nobody needs any more; a leader's job, so `connection` is the leader's fenced one."""
    certificates = connection.execute(queries.prune_certificates).rowcount
    orders = connection.execute(queries.prune_orders).rowcount
    return Pruned(certificates=certificates, orders=orders)


def _view(row: dict[str, Any], orders: tuple[OrderView, ...] = (), issuer: str | None = None) -> CertificateView:
    state, stage = _state(row)
    missing = tuple(row["missing"])
    return CertificateView(
        id=row["id"],
        domains=tuple(row["domains"]),
        state=state,
        stage=stage,
        wanted=row["entry"] is not None,
        serial=row["serial"],
        issuer=issuer,
        not_before=row["not_before"],
        not_after=row["not_after"],
        renew_at=row["renew_at"],
        renewal_requested_at=row["renewal_requested_at"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        last_error_at=row["last_error_at"],
        next_try_at=row["next_try_at"] if row["waiting"] else None,
        installed=Installed(nodes=row["nodes"] - len(missing), of=row["nodes"], missing=missing),
        created_at=row["created_at"],
        orders=orders,
    )


def _state(row: dict[str, Any]) -> tuple[str, str]:
    state, stage = _progress(row)
    if row["entry"] is None:
        stage = f"not wanted by any enabled entry; {stage}"
    if row["quarantined"]:
        stage += f"; its entry is quarantined on {', '.join(row['quarantined'])}: see GET /proxy/{row['entry']}"
    return state, stage


def _progress(row: dict[str, Any]) -> tuple[str, str]:
    wanted = row["entry"] is not None
    served = row["serial"] is not None and not row["expired"]
    if row["open_state"] is not None and not row["waiting"]:
        # An order in progress; one that waits for its back-off is a failure for now.
        return "renewing" if row["serial"] else "issuing", f"{_STAGES[row['open_state']]} (by {row['open_node']})"
    retry = f"failed {row['attempts']} times, "
    if not wanted:
        retry += "not tried again"
    elif row["waiting"]:
        retry += f"next try at {_time(row['next_try_at'])}"
    else:
        retry += "will be tried again now"
    if served:
        have = row["nodes"] - len(row["missing"])
        stage = f"installed on {have} of {row['nodes']} nodes"
        if row["attempts"]:
            stage += f"; renewal {retry}"
        elif row["renewal_requested_at"] and wanted:
            stage += "; renewal was requested"
        return "issued", stage
    if row["attempts"]:
        return "failed", ("expired; renewal " if row["expired"] else "") + retry
    if row["expired"]:
        return "failed", "expired; waits for the leader to renew it" if wanted else "expired"
    return "pending", "waits for a node to order it" if wanted else "nothing is ordered for it"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _issuer(chain_pem: str | None) -> str | None:
    return None if chain_pem is None else x509.load_pem_x509_certificate(chain_pem.encode()).issuer.rfc4514_string()

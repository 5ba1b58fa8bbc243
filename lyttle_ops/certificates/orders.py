"""The order ledger: what is about to be done with the CA is written first, so that whoever comes next resumes it.

Each step is a conditional UPDATE, by the instance that owns the order and from the state it believes in. A step
that changes no row means that somebody else has the order: OrderTaken, and nothing more is sent to the CA.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from acme import crypto_util

from lyttle_ops.certificates import backoff
from lyttle_ops.certificates.account import new_private_key
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.model import Issued, Order, OrderState
from lyttle_ops.certificates.problems import CAError, CARateLimited, CARefused, CARefusedForLong
from lyttle_ops.certificates.sealing import seal
from lyttle_ops.db import Database, load_queries
from lyttle_ops.errors import LyttleOpsError

log = logging.getLogger(__name__)

queries = load_queries("lyttle_ops.certificates")


class OrderTaken(LyttleOpsError):
    """The order changed hands or state meanwhile; nothing was written."""


class Ledger:
    """The orders as one instance works on them. No method holds a transaction open for its caller."""

    def __init__(self, database: Database, keyring: Keyring, node_name: str, instance_id: UUID) -> None:
        self._database = database
        self._keyring = keyring
        self._me = {"instance_id": instance_id, "node_name": node_name}

    def take_over(self, certificate_id: int) -> Order | None:
        """The open order of a certificate, ours from now on; None when there is none. Only under its lock."""
        with self._database.connection() as connection:
            row = connection.execute(queries.open_order, {"certificate_id": certificate_id}).fetchone()
        if row is None or row["instance_id"] == self._me["instance_id"]:
            return None if row is None else _order(row)
        log.info("Order %d of certificate %d is taken over from %s", row["id"], certificate_id, row["node_name"])
        values = {**self._me, "id": row["id"], "state": row["state"], "from_instance_id": row["instance_id"]}
        return _order(self._one(queries.take_over_order, values))

    def begin(self, certificate_id: int, domains: Sequence[str], directory_url: str) -> Order:
        """Intent: a fresh key (EC P-256) and its CSR."""
        key = new_private_key()
        values = {
            **self._me,
            "certificate_id": certificate_id,
            "directory_url": directory_url,
            "csr_pem": crypto_util.make_csr(key, list(domains)).decode(),
        }
        with self._database.transaction() as connection:
            sealed = seal(connection, self._keyring, key, certificate_id)
            row = connection.execute(queries.begin_order, {**values, **sealed}).fetchone()
        assert row is not None  # an INSERT that returns its row
        return _order(row)

    def advance(self, order: Order, to: OrderState, order_url: str | None = None) -> Order:
        """One step forward. Raises OrderTaken."""
        values = {**self._me, "id": order.id, "from": order.state.value, "to": to.value, "order_url": order_url}
        return _order(self._one(queries.advance_order, values))

    def complete(self, order: Order, issued: Issued, renew_at: datetime) -> int:
        """Store the certificate and make it the served one; the cluster's new revision. Raises OrderTaken."""
        values = {
            **self._me,
            "id": order.id,
            "chain_pem": issued.chain_pem,
            "serial": issued.serial,
            "not_before": issued.not_before,
            "not_after": issued.not_after,
            "renew_at": renew_at,
        }
        return int(self._one(queries.complete_order, values)["revision"])

    def abandon(self, order: Order, reason: str) -> None:
        """Close an order that cannot be resumed, without counting a failure. Raises OrderTaken."""
        values = {**self._me, "id": order.id, "state": order.state.value, "error": reason}
        self._one(queries.fail_order, {**values, "end": OrderState.ABANDONED.value})

    def served_chain(self, certificate_id: int, directory_url: str) -> str | None:
        """The PEM chain a new order would be the renewal of, when this CA issued it."""
        values = {"id": certificate_id, "directory_url": directory_url}
        with self._database.connection() as connection:
            row = connection.execute(queries.served_chain, values).fetchone()
        return None if row is None else str(row["chain_pem"])

    def record_failure(self, order: Order, error: CAError) -> timedelta:
        """Keep the CA's words and the wait until the next try, which is returned.

        A refusal ends the order; after anything else it stays open and is resumed. Raises OrderTaken.
        """
        with self._database.transaction() as connection:
            if isinstance(error, CARefused):
                values = {**self._me, "id": order.id, "state": order.state.value, "error": str(error)}
                values["end"] = OrderState.FAILED.value
                if connection.execute(queries.fail_order, values).fetchone() is None:
                    raise OrderTaken
            counted = connection.execute(queries.failures, {"id": order.certificate_id}).fetchone()
            if counted is None:
                raise OrderTaken("the certificate was deleted meanwhile")
            wait = _wait(error, counted["refused"], counted["attempts"] + 1 - counted["refused"])
            connection.execute(
                queries.record_failure,
                {
                    "id": order.certificate_id,
                    "error": str(error),
                    "delay": wait,
                    "rate_limited": isinstance(error, CARateLimited),
                },
            )
        return wait

    def _one(self, statement: Any, values: dict[str, Any]) -> dict[str, Any]:
        with self._database.connection() as connection:
            row = connection.execute(statement, values).fetchone()
        if row is None:
            raise OrderTaken
        return row


def _wait(error: CAError, refused: int, unreachable: int) -> timedelta:
    if isinstance(error, CARefusedForLong):
        own = timedelta(seconds=backoff.NOT_SOON)
    elif isinstance(error, CARefused):
        own = backoff.delay(backoff.REFUSED, refused)
    elif isinstance(error, CARateLimited):
        # The CA's word alone counts; our own guess only where it gave none.
        own = timedelta(seconds=1 if error.retry_after is not None else backoff.RATE_LIMITED)
    else:
        own = backoff.delay(backoff.UNREACHABLE, unreachable)
    return backoff.respect(error.retry_after, own)


def _order(row: dict[str, Any]) -> Order:
    return Order(
        id=row["id"],
        certificate_id=row["certificate_id"],
        state=OrderState(row["state"]),
        directory_url=row["directory_url"],
        order_url=row["order_url"],
        node_name=row["node_name"],
        key_id=row["key_id"],
        private_key=bytes(row["private_key"]),
        csr_pem=row["csr_pem"],
    )

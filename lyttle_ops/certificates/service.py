"""Certificates: the one way to a certificate, the same on every node.

look (no lock) → lock `cert:issue:{hash}` → look again → ledger → CA → store → every node is notified.
A failed try is stored with the certificate and respected by all nodes; an interrupted one is resumed by whoever
comes next. HTTP-01 needs no shared state: each node answers any token with the account's thumbprint (RFC 8555 8.1).
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from prometheus_client import Counter, Histogram

from lyttle_ops.certificates import renewal, store
from lyttle_ops.certificates.account import Account
from lyttle_ops.certificates.acme import CA
from lyttle_ops.certificates.encryption import Keyring, Undecryptable, WrongMasterKey
from lyttle_ops.certificates.issuing import Issuing
from lyttle_ops.certificates.model import Due, Outcome, Pruned, Usable, domain_set, lock_name
from lyttle_ops.certificates.network import ORDER_TIMEOUT, Deadline, Stopping
from lyttle_ops.certificates.orders import Ledger
from lyttle_ops.certificates.problems import CAError, CARefused
from lyttle_ops.clock import Clock, SystemClock
from lyttle_ops.cluster.locks import Lock, Locks
from lyttle_ops.db import Database, load_queries
from lyttle_ops.db.connection import Connection

log = logging.getLogger(__name__)

queries = load_queries("lyttle_ops.certificates")

_tries = Counter("lyttle_certificate_tries_total", "Calls of ensure_certificate by what they came to", ["outcome"])
_refusals = Counter("lyttle_certificate_failures_total", "Failed orders by kind", ["kind"])
_issue_seconds = Histogram(
    "lyttle_certificate_issue_seconds",
    "Time an order took with the CA, failed ones included",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 90),
)


class ACMESettings(Protocol):
    """What this room needs of the settings."""

    @property
    def acme_directory_url(self) -> str: ...
    @property
    def acme_ca_file(self) -> Path | None: ...
    @property
    def acme_email(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class _Look:
    id: int
    due: bool
    waiting: bool


class Certificates:
    """The certificates as one instance of one node sees them. Thread-safe."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        locks: Locks,
        settings: ACMESettings,
        node_name: str,
        instance_id: UUID,
        clock: Clock | None = None,
    ) -> None:
        self._database, self._keyring, self._locks = database, keyring, locks
        self._directory_url = settings.acme_directory_url
        self._ca_file = settings.acme_ca_file
        self._clock = clock or SystemClock()
        self._account = Account(database, keyring, locks, settings.acme_directory_url, settings.acme_email)
        self._ledger = Ledger(database, keyring, node_name, instance_id)
        self._stop = threading.Event()
        self._decrypted: dict[int, Usable] = {}
        self._reported: set[int] = set()

    def stop(self) -> None:
        """Orders under way end at their next step with Outcome.STOPPED; they stay resumable."""
        self._stop.set()

    def account_thumbprint(self) -> str:
        """What follows the token in each HTTP-01 answer; makes the account's key when there is none. No network.

        One short query; the thumbprint changes when the CA closes the account, and the revision with it.
        Raises WrongMasterKey when the key was stored with another master key.
        """
        return self._account.thumbprint()

    def check_key(self, key_id: str | None) -> None:
        """Raise WrongMasterKey when this node does not have the cluster's master key `key_id` any more."""
        if key_id is not None and key_id not in self._keyring.key_ids:
            raise WrongMasterKey(
                f"the cluster's master key was changed to {key_id}, this node has "
                f"{' and '.join(self._keyring.key_ids)}: start it anew with the new MASTER_KEY"
            )

    def pending(self, leader: bool) -> list[Due]:
        """First issues that can be tried now, and for the leader renewals that are due or requested."""
        with self._database.connection() as connection:
            return store.pending(connection, leader)

    def ensure_certificate(self, domains: Iterable[str]) -> Outcome:
        """See to it that a good certificate for exactly these domains exists.

        One SELECT when there is nothing to do. Never waits for another node. Takes up to ORDER_TIMEOUT seconds
        of the CA's time; what the CA says is stored, not raised. Raises CannotCertify for domains HTTP-01 cannot
        prove, WrongMasterKey when this node cannot use the cluster's account, LockLost, DatabaseError.
        """
        names = domain_set(domains)
        outcome = self._ensure(names)
        _tries.labels(outcome.value).inc()
        return outcome

    def _ensure(self, names: tuple[str, ...]) -> Outcome:
        if (settled := _settled(self._look(names))) is not None:
            return settled
        lock = self._locks.try_acquire_lock(lock_name(names))
        if lock is None:
            return Outcome.BUSY
        with lock:
            look = self._look(names)
            if look is None:
                with self._database.connection() as connection:
                    connection.execute(queries.create, {"domains": list(names)})
                look = self._look(names)
            if look is None:
                raise RuntimeError("certificates lost a row that was just written")
            if (settled := _settled(look)) is not None:
                return settled
            return self._issue(look.id, names, lock)

    def usable(self) -> list[Usable]:
        """Every served certificate that a proxy needs, with its key in clear. One query.

        One that cannot be decrypted is logged once and left out; the others still come.
        """
        with self._database.connection() as connection:
            rows = connection.execute(queries.usable).fetchall()
        known, fresh, broken = self._decrypted, {}, set()
        for row in rows:
            order_id = row["order_id"]
            if order_id in known:
                fresh[order_id] = known[order_id]
                continue
            try:
                key = self._keyring.decrypt(bytes(row["private_key"]), row["id"], row["key_id"])
            except Undecryptable as exc:
                broken.add(order_id)
                if order_id not in self._reported:
                    log.error(
                        "The key of certificate %d (%s) cannot be used, master key %s: %s",
                        row["id"], ", ".join(row["domains"]), row["key_id"], exc,
                    )  # fmt: skip
                continue
            fresh[order_id] = Usable(
                id=row["id"],
                order_id=order_id,
                domains=tuple(row["domains"]),
                serial=row["serial"],
                chain_pem=row["chain_pem"],
                key_pem=key,
                not_after=row["not_after"],
            )
        self._decrypted, self._reported = fresh, broken
        return list(fresh.values())

    def report_installed(self, instance_id: UUID, seen: Sequence[tuple[int, str | None]]) -> None:
        """Store which serial real handshakes on this instance showed for each order."""
        with self._database.transaction() as connection:
            store.report_installed(connection, instance_id, seen)

    def check_renewals(self, transaction: Callable[[], AbstractContextManager[Connection]]) -> list[Due]:
        """The leader's twelve-hourly round: ask the CA when to renew (RFC 9773), then list what is due.

        `transaction` opens the leader's fenced transaction; a new date is written inside it, the CA is asked outside.
        A CA without an opinion, or out of reach, changes nothing: the planned date stands.
        """
        try:
            self._ask_renewal_information(transaction)
        except Stopping:
            return []
        except CAError as exc:
            log.warning("No renewal information from the CA, planned dates stand: %s", exc)
        return self.pending(leader=True)

    def prune(self, connection: Connection | None = None) -> Pruned:
        """Remove expired certificates nobody wants and old orders; pass the leader's fenced connection."""
        if connection is not None:
            return store.prune(connection)
        with self._database.transaction() as own:
            return store.prune(own)

    # --- issuing ---

    def _look(self, names: tuple[str, ...]) -> _Look | None:
        with self._database.connection() as connection:
            row = connection.execute(queries.look, {"domains": list(names)}).fetchone()
        return None if row is None else _Look(row["id"], bool(row["due"]), row["waiting"])

    def _issue(self, certificate_id: int, names: tuple[str, ...], lock: Lock) -> Outcome:
        key = self._account.key()  # before anything is written: a node without it must not spoil the order
        ca = CA(
            self._directory_url, self._ca_file, key, Deadline(ORDER_TIMEOUT, self._stop, self._clock, lock.ensure_held)
        )
        issuing = Issuing(self._ledger, self._account, ca, self._keyring, self._directory_url, certificate_id, names)
        try:
            with _issue_seconds.time():
                issuing.run()
            return Outcome.ISSUED
        except Stopping:
            return Outcome.STOPPED
        except CAError as exc:
            lock.ensure_held()  # what is not ours any more is not ours to judge
            wait = self._ledger.record_failure(issuing.order, exc)
            _refusals.labels(type(exc).__name__).inc()
            log.warning("No certificate for %s, next try in %s: %s", ", ".join(names), wait, exc)
            return Outcome.FAILED
        finally:
            ca.close()

    # --- renewal information ---

    def _ask_renewal_information(self, transaction: Callable[[], AbstractContextManager[Connection]]) -> None:
        with self._database.connection() as connection:
            rows = connection.execute(queries.renewable, {"directory_url": self._directory_url}).fetchall()
        if not rows:
            return
        ca = CA(self._directory_url, self._ca_file, self._account.key(), Deadline(None, self._stop, self._clock))
        try:
            for row in rows:
                try:
                    window = ca.renewal_window(row["chain_pem"])
                except CARefused as exc:
                    log.info("The CA has no renewal information on certificate %d: %s", row["id"], exc)
                    continue
                if window is None:
                    return
                date = renewal.suggested(
                    window, row["not_before"], row["not_after"], renewal.jitter(row["id"], row["order_id"])
                )
                if date != row["renew_at"]:
                    with transaction() as connection:
                        connection.execute(
                            queries.plan_renewal, {"id": row["id"], "order_id": row["order_id"], "renew_at": date}
                        )
        finally:
            ca.close()


def _settled(look: _Look | None) -> Outcome | None:
    """The outcome when nothing is to be done now, None when there is."""
    if look is None:
        return None
    if not look.due:
        return Outcome.READY
    return Outcome.WAITING if look.waiting else None

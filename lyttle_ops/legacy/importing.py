"""The import: every row that can be taken goes in, in one transaction, and the others are named with the reason.

It never overwrites: an entry whose domains an entry of ours has, and a certificate for domains that have one, stay as
they are here. So it may be run again, after the source was mended or for what came since.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import psycopg

from lyttle_ops.certificates.adopted import CannotAdopt, Found, adopt, examine
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.model import CannotCertify
from lyttle_ops.db import Database
from lyttle_ops.db.connection import Connection
from lyttle_ops.legacy.mapping import CannotImport, to_input
from lyttle_ops.legacy.source import Entry, KeyUnreadable, Source, StoredCertificate, private_key
from lyttle_ops.proxies import DomainTaken, ProxyInput, create_proxy, list_proxies
from lyttle_ops.proxies.domains import merge_domains, normalise_domain

ORIGIN = "lyttlenginx:import"


@dataclass(frozen=True, slots=True)
class Item:
    """What became of one row. `source` is its id there, `id` the one here, `note` the reason or a warning."""

    source: str
    domains: str  # as they stand there
    id: int | None = None
    note: str = ""
    names: tuple[str, ...] = ()  # of an entry that is here: its domains as nodes serve them


@dataclass(slots=True)
class Outcome:
    """Rows of one table: taken, there already, not taken."""

    imported: list[Item] = field(default_factory=list)
    present: list[Item] = field(default_factory=list)
    refused: list[Item] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """What the import did, or with `dry_run` would do."""

    dry_run: bool
    proxies: Outcome = field(default_factory=Outcome)
    certificates: Outcome = field(default_factory=Outcome)

    @property
    def complete(self) -> bool:
        """Whether every row is here now."""
        return not self.proxies.refused and not self.certificates.refused


def import_all(
    database: Database, keyring: Keyring, source: Source, secret: str | None, now: datetime, dry_run: bool = False
) -> Result:
    """Take what can be taken from `source`; with `dry_run` nothing is kept.

    `secret` decrypts the source's private keys, where it encrypted them. Raises DatabaseError, WrongMasterKey.
    """
    result = Result(dry_run)
    # All that needs no database comes first: while the transaction is open, other writers wait for it.
    entries = _entries(source.entries, result.proxies)
    found = _certificates(source.certificates, secret, now, result.certificates)
    with database.transaction() as connection:
        _store_entries(connection, entries, result.proxies)
        for item, certificate in found:
            certificate_id = adopt(connection, keyring, certificate, ORIGIN)
            if certificate_id is None:
                result.certificates.present.append(item)
            else:
                result.certificates.imported.append(Item(item.source, item.domains, certificate_id))
        if dry_run:
            raise psycopg.Rollback
    return result


def _entries(rows: Sequence[Entry], outcome: Outcome) -> list[tuple[Item, ProxyInput]]:
    good = []
    for row in rows:
        try:
            entry, warnings = to_input(row)
        except CannotImport as exc:
            outcome.refused.append(Item(str(row.id), row.domains, note=str(exc)))
        else:
            good.append((Item(str(row.id), row.domains, note="; ".join(warnings)), entry))
    return good


def _certificates(
    rows: Sequence[StoredCertificate], secret: str | None, now: datetime, outcome: Outcome
) -> list[tuple[Item, Found]]:
    good = []
    for row in rows:
        try:
            good.append((Item(row.id, row.domains), _examine(row, secret, now)))
        except (CannotAdopt, CannotCertify, CannotImport, KeyUnreadable) as exc:
            outcome.refused.append(Item(row.id, row.domains, note=str(exc)))
    # Of several for the same domains the one that lasts longest is taken.
    return sorted(good, key=lambda pair: pair[1].not_after, reverse=True)


def _examine(row: StoredCertificate, secret: str | None, now: datetime) -> Found:
    if row.orphaned:
        raise CannotImport("no entry used it any more (orphaned)")
    if not row.chain_pem.strip():
        raise CannotImport(f"it holds no certificate (status {row.status})")
    try:
        names = [normalise_domain(name) for name in row.domains.split(";") if name.strip()]
        return examine(merge_domains(tuple(names)), row.chain_pem, private_key(row, secret), now)
    except ValueError as exc:
        raise CannotImport(f"domains: {exc}") from None


def _store_entries(connection: Connection, entries: Sequence[tuple[Item, ProxyInput]], outcome: Outcome) -> None:
    ours = {proxy.domains: proxy.id for proxy in list_proxies(connection)}
    for item, entry in entries:
        if entry.domains in ours:
            outcome.present.append(Item(item.source, item.domains, ours[entry.domains], names=entry.domains))
            continue
        try:
            proxy = create_proxy(connection, entry)
        except DomainTaken as exc:
            outcome.refused.append(Item(item.source, item.domains, note=str(exc)))
        else:
            outcome.imported.append(Item(item.source, item.domains, proxy.id, item.note, entry.domains))

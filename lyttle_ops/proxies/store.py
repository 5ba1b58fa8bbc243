"""Proxy entries in PostgreSQL.

`connection` is one of `Database.connection()` or `.transaction()`. Each write is a transaction of its own (a
savepoint inside a caller's) and takes its locks in one order: the entry's row, cluster_state (next_revision),
proxy_domains. So writers queue at cluster_state for about a millisecond each and cannot deadlock.
"""

from collections.abc import Mapping
from typing import Any

from lyttle_ops.db import DatabaseBusy, load_queries
from lyttle_ops.db.connection import Connection
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.proxies.model import Proxy, ProxyInput

queries = load_queries("lyttle_ops.proxies")
GREATEST_ID = 2**63 - 1
_CLAIM_TRIES = 5


class ProxyNotFound(LyttleOpsError):
    """There is no proxy entry with this id."""

    def __init__(self, proxy_id: int) -> None:
        super().__init__(f"there is no proxy entry {proxy_id}")
        self.proxy_id = proxy_id


class DomainTaken(LyttleOpsError):
    """Another proxy entry has this domain."""

    def __init__(self, domain: str, other_id: int) -> None:
        super().__init__(f"{domain} belongs to proxy entry {other_id}")
        self.domain = domain
        self.other_id = other_id


def list_proxies(connection: Connection, enabled_only: bool = False) -> list[Proxy]:
    """Every entry, oldest first."""
    statement = queries.enabled_proxies if enabled_only else queries.all_proxies
    return [Proxy.from_row(row) for row in connection.execute(statement)]


def get_proxy(connection: Connection, proxy_id: int) -> Proxy:
    """One entry. Raises ProxyNotFound."""
    return _one(connection, queries.get_proxy, proxy_id)


def create_proxy(connection: Connection, entry: ProxyInput) -> Proxy:
    """Add an entry. Raises DomainTaken when another entry has one of its domains; then nothing is written."""
    with connection.transaction():
        row = connection.execute(queries.insert_proxy, _columns(entry)).fetchone()
        assert row is not None
        proxy = Proxy.from_row(row)
        _claim(connection, proxy.id, proxy.domains)
        return proxy


def update_proxy(connection: Connection, proxy_id: int, changes: Mapping[str, Any]) -> Proxy:
    """Change some fields of an entry; the others keep what a concurrent change may have given them.

    Raises ProxyNotFound, DomainTaken, and pydantic's ValidationError when the result as a whole is not a valid
    entry. When nothing is different, nothing is written and the revision stays.
    """
    with connection.transaction():
        before = _one(connection, queries.lock_proxy, proxy_id)
        entry = ProxyInput.model_validate({**before.fields(), **changes})
        if entry == ProxyInput.model_construct(**before.fields()):
            return before
        row = connection.execute(queries.update_proxy, {**_columns(entry), "id": proxy_id}).fetchone()
        assert row is not None
        proxy = Proxy.from_row(row)
        if proxy.domains != before.domains:
            connection.execute(queries.release_domains, {"id": proxy_id, "domains": list(proxy.domains)})
            _claim(connection, proxy_id, tuple(sorted(set(proxy.domains) - set(before.domains))))
        return proxy


def delete_proxy(connection: Connection, proxy_id: int) -> None:
    """Remove an entry. Raises ProxyNotFound."""
    if proxy_id > GREATEST_ID or connection.execute(queries.delete_proxy, {"id": proxy_id}).fetchone() is None:
        raise ProxyNotFound(proxy_id)


def find_conflict(connection: Connection, domains: tuple[str, ...], proxy_id: int | None = None) -> DomainTaken | None:
    """The conflict that an entry with these domains would meet now, for showing; the constraint decides."""
    row = connection.execute(queries.find_conflict, {"domains": list(domains), "id": proxy_id}).fetchone()
    return DomainTaken(row["domain"], row["proxy_id"]) if row else None


def _claim(connection: Connection, proxy_id: int, domains: tuple[str, ...]) -> None:
    wanted = {"id": proxy_id, "domains": list(domains)}
    missing = len(domains)
    for _ in range(_CLAIM_TRIES):
        missing -= connection.execute(queries.claim_domains, wanted).rowcount
        if not missing:
            return
        conflict = find_conflict(connection, domains, proxy_id)
        if conflict is not None:
            raise conflict
        # Its holder gave the domain up between the two statements: claim again.
    raise DatabaseBusy("the domains keep changing hands; try again")


def _one(connection: Connection, statement: Any, proxy_id: int) -> Proxy:
    row = None if proxy_id > GREATEST_ID else connection.execute(statement, {"id": proxy_id}).fetchone()
    if row is None:
        raise ProxyNotFound(proxy_id)
    return Proxy.from_row(row)


def _columns(entry: ProxyInput) -> dict[str, Any]:
    return {**entry.model_dump(), "domains": list(entry.domains)}

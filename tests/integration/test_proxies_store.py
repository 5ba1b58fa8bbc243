"""Proxy entries in a real PostgreSQL: the constraint decides, also between writers at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from lyttle_ops.certificates.store import get_certificate
from lyttle_ops.db import Database
from lyttle_ops.nginx.model import Target
from lyttle_ops.proxies import (
    DomainTaken,
    Proxy,
    ProxyInput,
    ProxyNotFound,
    create_proxy,
    delete_proxy,
    get_proxy,
    list_proxies,
    page_of_proxies,
    to_site,
    update_proxy,
    view_of_proxy,
)


def entry(domains: str = "example.com", **fields: Any) -> ProxyInput:
    return ProxyInput.model_validate({"domains": domains, "proxy_pass_host": "http://backend:8080", **fields})


def create(database: Database, domains: str = "example.com", **fields: Any) -> Proxy:
    with database.connection() as connection:
        return create_proxy(connection, entry(domains, **fields))


def change(database: Database, proxy_id: int, **changes: Any) -> Proxy:
    with database.connection() as connection:
        return update_proxy(connection, proxy_id, changes)


def revision(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute("SELECT revision FROM cluster_state").fetchone()
        assert row
        return int(row["revision"])


def claims(database: Database) -> dict[str, int]:
    with database.connection() as connection:
        rows = connection.execute("SELECT domain, proxy_id FROM proxy_domains").fetchall()
        return {row["domain"]: row["proxy_id"] for row in rows}


def add_instance(
    database: Database, node: str, applied: int, quarantined: dict[str, str] | None = None, age: str = "1 second"
) -> UUID:
    instance = uuid4()
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO nodes (name, machine_id) VALUES (%s, %s) ON CONFLICT DO NOTHING", (node, f"machine-{node}")
        )
        connection.execute(
            "INSERT INTO instances (id, node_name, hostname, version, applied_revision, quarantined, last_heartbeat_at)"
            " VALUES (%s, %s, 'host', '1', %s, %s, now() - %s::interval)",
            (instance, node, applied, Jsonb(quarantined or {}), age),
        )
    return instance


def test_a_new_entry_is_what_was_asked_for_with_a_revision_of_its_own(database: Database) -> None:
    proxy = create(database, "b.example.com;a.example.com", ssl=True)
    assert proxy.domains == ("a.example.com", "b.example.com")
    assert proxy.revision == revision(database) == 1
    with database.connection() as connection:
        assert get_proxy(connection, proxy.id) == proxy
        assert list_proxies(connection) == [proxy]
    assert claims(database) == {"a.example.com": proxy.id, "b.example.com": proxy.id}


def test_a_taken_domain_is_refused_naming_its_entry_and_nothing_is_written(database: Database) -> None:
    first = create(database, "a.example.com;b.example.com")
    with pytest.raises(DomainTaken) as caught:
        create(database, "b.example.com;c.example.com")
    assert (caught.value.domain, caught.value.other_id) == ("b.example.com", first.id)
    assert claims(database) == {"a.example.com": first.id, "b.example.com": first.id}
    assert revision(database) == first.revision


def test_a_refused_entry_leaves_the_callers_transaction_usable(database: Database) -> None:
    create(database)
    with database.transaction() as connection:
        with pytest.raises(DomainTaken):
            create_proxy(connection, entry())
        other = create_proxy(connection, entry("other.example.com"))
    assert claims(database) == {"example.com": 1, "other.example.com": other.id}


def test_of_many_writers_of_one_domain_at_once_one_wins(database: Database) -> None:
    """The race is decided by the primary key; each loser is told who won."""

    def attempt(number: int) -> Proxy | DomainTaken:
        try:
            return create(database, f"shared.example.com;own{number}.example.com")
        except DomainTaken as exc:
            return exc

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, range(8)))
    winners = [result for result in results if isinstance(result, Proxy)]
    assert len(winners) == 1
    for loser in (result for result in results if isinstance(result, DomainTaken)):
        assert (loser.domain, loser.other_id) == ("shared.example.com", winners[0].id)
    assert set(claims(database)) == set(winners[0].domains)


def test_writers_that_swap_domains_at_once_never_deadlock(database: Database) -> None:
    one, two = create(database, "one.example.com"), create(database, "two.example.com")

    def attempt(number: int) -> bool:
        target, name = ((one, "two"), (two, "one"))[number % 2]
        try:
            change(database, target.id, domains=f"{name}.example.com;extra{number % 3}.example.com")
        except DomainTaken:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(40)))  # any other error fails here
    with database.connection() as connection:
        held = {domain: proxy.id for proxy in list_proxies(connection) for domain in proxy.domains}
    assert held == claims(database)


def test_a_change_keeps_what_it_does_not_name_and_gets_a_revision(database: Database) -> None:
    proxy = create(database, ssl=True, read_timeout=99)
    changed = change(database, proxy.id, ssl=False)
    assert (changed.ssl, changed.read_timeout, changed.domains) == (False, 99, proxy.domains)
    assert changed.revision == revision(database) > proxy.revision
    assert changed.created_at == proxy.created_at < changed.updated_at


def test_changing_domains_gives_the_old_ones_up(database: Database) -> None:
    proxy = create(database, "a.example.com;b.example.com")
    change(database, proxy.id, domains="b.example.com;c.example.com")
    assert claims(database) == {"b.example.com": proxy.id, "c.example.com": proxy.id}
    assert create(database, "a.example.com").id != proxy.id


def test_a_change_to_a_taken_domain_changes_nothing(database: Database) -> None:
    other, proxy = create(database, "taken.example.com"), create(database)
    with pytest.raises(DomainTaken) as caught:
        change(database, proxy.id, domains="example.com;taken.example.com", ssl=True)
    assert caught.value.other_id == other.id
    with database.connection() as connection:
        assert get_proxy(connection, proxy.id) == proxy
    assert claims(database) == {"example.com": proxy.id, "taken.example.com": other.id}


def test_a_change_that_changes_nothing_writes_nothing(database: Database) -> None:
    """So a client that repeats itself reloads no NGINX."""
    proxy = create(database)
    assert change(database, proxy.id, ssl=False, domains="EXAMPLE.com.") == proxy
    assert revision(database) == proxy.revision


def test_the_result_of_a_change_is_checked_as_a_whole(database: Database) -> None:
    proxy = create(database, "intranet")
    with pytest.raises(ValidationError, match="no dot"):
        change(database, proxy.id, ssl=True)


def test_two_changes_at_once_both_last(database: Database) -> None:
    """Each reads under the row lock, so neither writes back what the other changed."""
    proxy = create(database)
    changes: list[dict[str, Any]] = [{"ssl": True}, {"read_timeout": 7}, {"connect_timeout": 8}, {"hsts": True}]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda fields: change(database, proxy.id, **fields), changes))
    with database.connection() as connection:
        after = get_proxy(connection, proxy.id)
    assert (after.ssl, after.read_timeout, after.connect_timeout, after.hsts) == (True, 7, 8, True)


def test_deleting_frees_the_domains_and_is_a_change_of_the_cluster(database: Database) -> None:
    proxy = create(database)
    with database.connection() as connection:
        delete_proxy(connection, proxy.id)
    assert claims(database) == {}
    assert revision(database) == proxy.revision + 1
    assert create(database).id != proxy.id


@pytest.mark.parametrize("missing", [1, 0, -1, 2**63 - 1, 2**63, 10**30])
def test_an_unknown_id_is_not_found_whatever_its_size(database: Database, missing: int) -> None:
    with database.connection() as connection:
        for action in (
            lambda: get_proxy(connection, missing),
            lambda: view_of_proxy(connection, missing),
            lambda: update_proxy(connection, missing, {"ssl": True}),
            lambda: delete_proxy(connection, missing),
        ):
            with pytest.raises(ProxyNotFound):
                action()


def test_every_write_notifies_the_nodes_with_its_revision(database: Database, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute("LISTEN lyttle_state")
        proxy = create(database)
        change(database, proxy.id, ssl=True)
        with database.connection() as connection:
            delete_proxy(connection, proxy.id)
        told = [notification.payload for notification in listener.notifies(timeout=5, stop_after=3)]
    assert told == ["1", "2", "3"]


def test_a_page_counts_all_and_filters_by_domain(database: Database) -> None:
    proxies = [create(database, f"n{number}.example.com") for number in range(5)]
    with database.connection() as connection:
        page = page_of_proxies(connection, limit=2, offset=2)
        assert ([view.proxy for view in page.items], page.total) == (proxies[2:4], 5)
        page = page_of_proxies(connection, offset=9)
        assert (page.items, page.total) == ((), 5)
        page = page_of_proxies(connection, domain="n3.example.com")
        assert ([view.proxy for view in page.items], page.total) == ([proxies[3]], 1)
        page = page_of_proxies(connection, domain="nobody.example.com")
        assert (page.items, page.total) == ((), 0)


def test_live_names_the_nodes_that_serve_the_newest_version(database: Database) -> None:
    proxy = create(database)
    create(database, "later.example.com")
    add_instance(database, "has", applied=2)
    add_instance(database, "behind", applied=0)
    add_instance(database, "refuses", applied=2, quarantined={str(proxy.id): "unknown directive"})
    add_instance(database, "refuses-another", applied=2, quarantined={"99": "unknown directive"})
    add_instance(database, "stale", applied=2, age="3 minutes")
    with database.connection() as connection:
        live = view_of_proxy(connection, proxy.id).live
    assert (live.nodes, live.of) == (2, 4)
    assert live.waiting == ("behind",)
    assert live.errors == {"refuses": "unknown directive"}
    assert live.state == "quarantined"


def test_a_disabled_entry_is_live_nowhere(database: Database) -> None:
    proxy = create(database, enabled=False)
    add_instance(database, "has", applied=1)
    add_instance(database, "behind", applied=0)
    with database.connection() as connection:
        live = view_of_proxy(connection, proxy.id).live
    assert (live.state, live.nodes, live.of, live.waiting) == ("disabled", 0, 2, ("behind",))


def test_an_entry_is_live_once_every_active_node_has_it(database: Database) -> None:
    proxy = create(database)

    def state() -> str:
        with database.connection() as connection:
            return view_of_proxy(connection, proxy.id).live.state

    assert state() == "waiting"  # nobody is there
    add_instance(database, "has", applied=1)
    assert state() == "live"
    add_instance(database, "behind", applied=0)
    assert state() == "waiting"


def test_a_node_that_is_being_updated_counts_once(database: Database) -> None:
    """Two instances share the node's sockets; the new one takes them only when its release answers."""
    proxy = create(database)
    add_instance(database, "node1", applied=1)
    add_instance(database, "node1", applied=0)
    with database.connection() as connection:
        live = view_of_proxy(connection, proxy.id).live
    assert (live.nodes, live.of, live.waiting) == (1, 1, ())


def test_the_certificate_of_an_entry_is_told_as_far_as_it_is(database: Database) -> None:
    """In the same words as the certificate itself; the two rooms must not drift apart."""
    proxy = create(database, ssl=True)
    plain = create(database, "plain.example.com")

    def state() -> str:
        with database.connection() as connection:
            certificate = view_of_proxy(connection, proxy.id).certificate
            assert certificate is not None
            assert page_of_proxies(connection).items[0].certificate == certificate
            if certificate.id is not None:
                whole = get_certificate(connection, certificate.id)
                assert (whole.state, whole.last_error) == (certificate.state, certificate.last_error)
                assert (whole.not_after, whole.next_try_at) == (certificate.not_after, certificate.next_try_at)
                assert whole.next_try_at is None or whole.next_try_at > datetime.now(UTC)  # never a time gone by
            return certificate.state

    with database.connection() as connection:
        assert view_of_proxy(connection, plain.id).certificate is None
    assert state() == "pending"
    steps: list[tuple[LiteralString, str]] = [
        ("INSERT INTO certificates (domains, revision) VALUES ('{example.com}', 1)", "pending"),
        (
            "INSERT INTO certificate_orders (certificate_id, state, directory_url, node_name, instance_id, key_id,"
            " private_key, csr_pem) VALUES (1, 'intent', 'u', 'n', gen_random_uuid(), 'k', '', '')",
            "issuing",
        ),
        (
            "UPDATE certificates SET attempts = 1, last_error = 'no such host', next_try_at = now() + interval '1 h'",
            "failed",
        ),
        ("UPDATE certificates SET next_try_at = now() - interval '1 h'", "issuing"),
        ("UPDATE certificate_orders SET state = 'failed'", "failed"),
        ("UPDATE certificates SET attempts = 0, last_error = NULL, next_try_at = NULL, order_id = 1", "pending"),
        (
            "UPDATE certificate_orders SET state = 'issued', serial = 'ab', not_after = now() + interval '90 days'",
            "issued",
        ),
        ("UPDATE certificates SET renewal_requested_at = now()", "issued"),
        (
            "INSERT INTO certificate_orders (certificate_id, state, directory_url, node_name, instance_id, key_id,"
            " private_key, csr_pem) VALUES (1, 'intent', 'u', 'n', gen_random_uuid(), 'k', '', '')",
            "renewing",
        ),
        ("UPDATE certificate_orders SET state = 'failed' WHERE id = 2", "issued"),
        ("UPDATE certificate_orders SET not_after = now() - interval '1 h' WHERE id = 1", "failed"),
    ]
    for statement, expected in steps:
        with database.connection() as connection:
            connection.execute(statement)
        assert state() == expected, statement


def test_an_entry_becomes_a_site_with_parsed_values(database: Database) -> None:
    proxy = create(database, "a.example.com;b.example.com", ssl=True, proxy_pass_host="https://b:8443/x/")
    site = to_site(proxy, {"a.example.com": "cert-1", "z.example.com": "cert-2"})
    assert site.target == Target("https", "b", 8443, "/x")
    assert site.tls == {"a.example.com": "cert-1"}
    assert (site.kind, site.ssl, site.domains) == ("proxy", True, proxy.domains)
    assert to_site(create(database, "c.example.com"), {"c.example.com": "cert-1"}).tls == {}

"""Certificates and counts over HTTP: what is wanted counts, and a wish to renew is answered in words."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from lyttle_ops.db import Database
from tests.support.api import Client, add_admin, application, code_of


@pytest.fixture
def client(database: Database, database_url: str) -> Iterator[Client]:
    add_admin(database)
    with application(database_url) as app:
        yield Client(app).log_in()


def add_entry(client: Client, domains: str, **fields: Any) -> int:
    entry = {"domains": domains, "proxy_pass_host": "http://backend", "ssl": True, **fields}
    answer = client.post("/proxy", entry)
    assert answer.status_code == 201, answer.text
    return int(answer.json["id"])


def add_certificate(database: Database, domain: str, days: int = 90, **columns: Any) -> int:
    """An issued certificate as the ledger holds it, an hour old; its id."""
    with database.transaction() as connection:
        row = connection.execute(
            "INSERT INTO certificates (domains, revision, attempts) VALUES (%s, 1, %s) RETURNING id",
            ([domain], columns.get("attempts", 0)),
        ).fetchone()
        assert row
        certificate = int(row["id"])
        add_order(connection, certificate, days)
    return certificate


def add_order(connection: Any, certificate: int, days: int = 90, age: str = "1 hour") -> None:
    connection.execute(
        "WITH o AS (INSERT INTO certificate_orders (certificate_id, state, directory_url, node_name, instance_id,"
        " key_id, private_key, csr_pem, serial, not_after, updated_at)"
        " VALUES (%s, 'issued', 'u', 'n', gen_random_uuid(), 'k', '', '', 'ab', now() + make_interval(days => %s),"
        " now() - %s::interval) RETURNING id)"
        " UPDATE certificates SET order_id = o.id, renewal_requested_at = NULL FROM o WHERE certificates.id = %s",
        (certificate, days, age, certificate),
    )


def add_node(database: Database, name: str, shows: list[int], quarantined: dict[str, str] | None = None) -> None:
    """An active node that serves everything and shows these certificates."""
    instance = uuid4()
    with database.transaction() as connection:
        connection.execute("INSERT INTO nodes (name, machine_id) VALUES (%s, %s)", (name, name))
        connection.execute(
            "INSERT INTO instances (id, node_name, hostname, version, applied_revision, quarantined)"
            " VALUES (%s, %s, 'h', '1', 1000, %s)",
            (instance, name, Jsonb(quarantined or {})),
        )
        connection.execute(
            "INSERT INTO certificate_installs (order_id, instance_id, serial)"
            " SELECT order_id, %s, 'ab' FROM certificates WHERE id = ANY (%s)",
            (instance, shows),
        )


def test_stats_count_the_certificates_that_are_wanted(client: Client, database: Database) -> None:
    """Left-overs of removed and disabled entries are neither failing nor valid."""
    for number in range(4):
        add_entry(client, f"w{number}.example.com")
    add_entry(client, "disabled.example.com", enabled=False)
    add_entry(client, "plain.example.com", ssl=False)
    everywhere = add_certificate(database, "w0.example.com")
    half = add_certificate(database, "w1.example.com", attempts=2)
    expired = add_certificate(database, "w2.example.com", days=-1)
    for left in ("disabled", "plain", "removed"):
        add_certificate(database, f"{left}.example.com", attempts=1)
    counts = client.get("/cluster/stats").json["certificates"]
    assert counts == {"total": 4, "valid": 2, "failing": 1, "installed": 0}  # no node is there
    add_node(database, "n1", [everywhere, half, expired])
    add_node(database, "n2", [everywhere, expired])
    stats = client.get("/cluster/stats").json
    assert stats["certificates"] == {"total": 4, "valid": 2, "failing": 1, "installed": 1}
    assert stats["proxies"] == {"total": 6, "enabled": 5}


def test_orders_and_issuer_are_shown_for_a_single_certificate(client: Client, database: Database) -> None:
    certificate = add_certificate(database, "a.example.com")
    (item,) = client.get("/certificates").json["items"]
    single = client.get(f"/certificates/{certificate}").json
    assert set(single) - set(item) == {"issuer", "orders"}
    assert len(single["orders"]) == 1


def test_the_stage_says_first_that_nobody_wants_it(client: Client, database: Database) -> None:
    certificate = add_certificate(database, "a.example.com")
    add_node(database, "n1", [certificate])
    entry = add_entry(client, "a.example.com")
    assert client.get(f"/certificates/{certificate}").json["stage"] == "installed on 1 of 1 nodes"
    client.patch(f"/proxy/{entry}", {"enabled": False})
    shown = client.get(f"/certificates/{certificate}").json
    assert (shown["wanted"], shown["stage"]) == (
        False,
        "not wanted by any enabled entry; installed on 1 of 1 nodes",
    )


def test_the_stage_leads_to_a_quarantined_entry(client: Client, database: Database) -> None:
    """Its certificate is installed and still nobody gets the site."""
    certificate = add_certificate(database, "a.example.com")
    entry = add_entry(client, "a.example.com")
    for name in ("n2", "n1"):
        add_node(database, name, [], {str(entry): "invalid value"})
    add_node(database, "n3", [certificate], {"99": "invalid value"})
    assert client.get(f"/certificates/{certificate}").json["stage"] == (
        f"installed on 1 of 3 nodes; its entry is quarantined on n1, n2: see GET /proxy/{entry}"
    )
    live = client.get(f"/proxy/{entry}").json["live"]
    assert (live["state"], set(live["errors"])) == ("quarantined", {"n1", "n2"})


def test_what_nobody_wants_is_not_renewed(client: Client, database: Database) -> None:
    certificate = add_certificate(database, "a.example.com")
    add_entry(client, "a.example.com", enabled=False)
    answer = client.post(f"/certificates/{certificate}/renew")
    assert (answer.status_code, code_of(answer)) == (409, "not_wanted")
    assert "a.example.com: enable that entry or add one" in answer.json["error"]["message"]
    assert client.get(f"/certificates/{certificate}").json["renewal_requested_at"] is None


def test_a_wish_to_renew_says_what_comes_of_it(client: Client, database: Database) -> None:
    certificate = add_certificate(database, "a.example.com")
    add_entry(client, "a.example.com")
    answer = client.post(f"/certificates/{certificate}/renew")
    assert (answer.status_code, answer.json["message"]) == (202, "the leader renews it now")
    assert answer.json["renewal_requested_at"] is not None
    with database.connection() as connection:
        add_order(connection, certificate, age="1 second")
    answer = client.post(f"/certificates/{certificate}/renew")
    assert answer.status_code == 202
    assert "renewed within the last 10 seconds" in answer.json["message"]
    assert answer.json["renewal_requested_at"] is None

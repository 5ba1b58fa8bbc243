"""The live table's numbers, asked of a real database."""

from uuid import uuid4

from lyttle_ops.db import Database, load_queries
from lyttle_ops.db.connection import Connection

queries = load_queries("lyttle_ops.local")


def _entry(connection: Connection, domain: str, *, ssl: bool = True, enabled: bool = True) -> None:
    row = connection.execute(
        "INSERT INTO proxies (type, domains, proxy_pass_host, ssl, enabled, revision) "
        "VALUES ('PROXY', %s, 'http://127.0.0.1', %s, %s, 1) RETURNING id",
        ([domain], ssl, enabled),
    ).fetchone()
    assert row is not None


def _certificate(connection: Connection, domain: str, instance: str) -> None:
    """An issued one that `instance` serves."""
    connection.execute("INSERT INTO certificates (domains, revision) VALUES (%s, 1)", ([domain],))
    connection.execute(
        "WITH made AS (INSERT INTO certificate_orders (certificate_id, state, directory_url, node_name, instance_id, "
        "key_id, private_key, csr_pem, serial) SELECT id, 'issued', 'https://ca/dir', 'n1', %(instance)s, 'k', '', '', "
        "'ab' FROM certificates WHERE domains = %(domains)s RETURNING id, certificate_id), "
        "seen AS (INSERT INTO certificate_installs (order_id, instance_id, serial) "
        "SELECT id, %(instance)s, 'ab' FROM made) "
        "UPDATE certificates c SET order_id = made.id FROM made WHERE c.id = made.certificate_id",
        {"instance": instance, "domains": [domain]},
    )


def test_only_certificates_that_an_enabled_entry_wants_are_counted(database: Database) -> None:
    instance = str(uuid4())
    with database.transaction() as connection:
        connection.execute("INSERT INTO nodes (name, machine_id) VALUES ('n1', 'm')")
        connection.execute(
            "INSERT INTO instances (id, node_name, hostname, version) VALUES (%s, 'n1', 'h', '0')", (instance,)
        )
        _entry(connection, "wanted.example")
        _entry(connection, "waiting.example")
        _entry(connection, "disabled.example", enabled=False)
        _entry(connection, "plain.example", ssl=False)
        for domain in ("wanted.example", "disabled.example", "plain.example", "deleted.example"):
            _certificate(connection, domain, instance)
        connection.execute("INSERT INTO certificates (domains, revision) VALUES ('{waiting.example}', 1)")
        assert connection.execute(queries.wanted_certificates).fetchone() == {"total": 2}
        assert connection.execute(queries.installed).fetchall() == [{"instance_id": instance, "installed": 1}]

"""The master key changes while nodes serve: both keys everywhere, one transaction, then the new one alone."""

import base64
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509

from lyttle_ops.certificates.adopted import adopt, examine
from lyttle_ops.certificates.encryption import Keyring, WrongMasterKey
from lyttle_ops.certificates.sealing import Rotated, rotate, seal
from lyttle_ops.certificates.service import Certificates
from lyttle_ops.certificates.store import list_certificates
from lyttle_ops.cluster.locks import Locks
from lyttle_ops.db import Database
from lyttle_ops.proxies import ProxyInput, create_proxy
from tests.integration.test_node import NodeProcess, node
from tests.operations.test_import import issue
from tests.support.ca import ACMESettings
from tests.support.wait import until

__all__ = ["node"]  # the fixture

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
DOMAIN = "a.example.com"


def written(key: bytes) -> str:
    return base64.b64encode(key).decode()


def run(one: NodeProcess, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command in this node's container."""
    return subprocess.run(
        [sys.executable, "-m", "lyttle_ops.cli", *arguments],
        env=one.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def served(one: NodeProcess) -> list[dict[str, Any]]:
    done = run(one, "domains", "--json")
    return list(json.loads(done.stdout)["domains"]) if done.returncode == 0 else []


def shown(one: NodeProcess) -> str:
    """Serial of the certificate that a handshake with the node shows."""
    host, port = one.environment["HTTPS_LISTEN"].split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=DOMAIN) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
        assert certificate
        return f"{x509.load_der_x509_certificate(certificate).serial_number:x}"


def add_certificate(database: Database, keyring: Keyring, *names: str) -> None:
    with database.transaction() as connection:
        create_proxy(connection, ProxyInput(domains=names, proxy_pass_host="http://127.0.0.1:9", ssl=True))
        assert adopt(connection, keyring, examine(names, *issue(*names), datetime.now(UTC)), "test")


def key_ids(database: Database) -> set[str]:
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT key_id FROM certificate_orders UNION SELECT key_id FROM acme_accounts UNION"
            " SELECT key_id FROM cluster_state"
        ).fetchall()
    return {row["key_id"] for row in rows}


def change(one: NodeProcess, key: bytes, previous: bytes | None = None) -> None:
    """Start it anew with other keys, as an update of the service does."""
    one.stop()
    one.environment["MASTER_KEY"] = written(key)
    one.environment["MASTER_KEY_PREVIOUS"] = written(previous) if previous else ""
    one.start()
    until(one.ready, timeout=40)


@pytest.mark.timeout(300)  # six starts of a node
def test_the_whole_change_on_two_real_nodes(node: Callable[..., NodeProcess], database: Database) -> None:
    add_certificate(database, Keyring(OLD), DOMAIN)
    first, second = node(MASTER_KEY=written(OLD)).start(), node(name="n2", MASTER_KEY=written(OLD)).start()
    until(lambda: first.ready() and second.ready(), timeout=40)
    https = [{"domain": DOMAIN, "ssl": True, "ssl_wanted": True}]
    assert served(first) == served(second) == https

    change(first, NEW, OLD)
    assert "rotate-master-key" in first.text()
    assert served(first) == https
    refused = run(first, "rotate-master-key")
    assert refused.returncode == 1
    assert "n2 has not got the new MASTER_KEY" in refused.stderr
    assert key_ids(database) == {Keyring(OLD).key_id}

    change(second, NEW, OLD)
    done = run(second, "rotate-master-key")
    assert done.returncode == 0, done.stderr
    assert "encrypted anew: 1 keys of certificates, 1 of accounts" in done.stdout
    assert key_ids(database) == {Keyring(NEW).key_id}
    assert served(first) == served(second) == https
    again = run(second, "rotate-master-key")
    assert "encrypted anew: 0 keys of certificates, 0 of accounts" in again.stdout

    change(first, NEW)
    assert served(first) == served(second) == https
    with database.connection() as connection:
        (certificate,) = list_certificates(connection)
    assert shown(first) == shown(second) == certificate.serial
    late = node(name="n3", MASTER_KEY=written(OLD)).start()
    assert late.wait() == 1
    assert "MASTER_KEY is not the cluster's" in late.text()


def test_a_node_that_missed_the_change_serves_on_and_says_so(
    node: Callable[..., NodeProcess], database: Database
) -> None:
    """It was frozen, so nobody knew of it, and thaws with the old key alone."""
    add_certificate(database, Keyring(OLD), DOMAIN)
    one = node(MASTER_KEY=written(OLD)).start()
    until(one.ready, timeout=40)
    assert one.process
    one.process.send_signal(signal.SIGSTOP)
    with database.transaction() as connection:
        rotate(connection, Keyring(NEW, OLD))
    one.process.send_signal(signal.SIGCONT)
    until(lambda: not one.ready(), 20, "it says that something is wrong")
    until(lambda: "master key was changed" in one.get("/health/ready").text, 20)
    assert served(one) == [{"domain": DOMAIN, "ssl": True, "ssl_wanted": True}]


def test_rows_written_before_and_while_it_changes_are_all_readable_after(database: Database) -> None:
    both = Keyring(NEW, OLD)
    add_certificate(database, Keyring(OLD), DOMAIN)
    with database.connection() as connection:
        connection.execute("UPDATE cluster_state SET key_id = %s", (Keyring(OLD).key_id,))
    results: list[Rotated] = []

    def change() -> None:
        with database.transaction() as connection:
            results.append(rotate(connection, both))

    with database.transaction() as connection:
        # A node with both keys is placing an order; it holds the cluster's key.
        sealed = seal(connection, both, b"key", 1)
        assert sealed["key_id"] == Keyring(OLD).key_id
        changing = threading.Thread(target=change)
        changing.start()
        changing.join(0.5)
        assert changing.is_alive()
        connection.execute(
            "INSERT INTO acme_accounts (directory_url, key_id, private_key) VALUES ('x', %s, %s)",
            (sealed["key_id"], seal(connection, both, b"account", "account:x")["private_key"]),
        )
    changing.join(10)
    assert results == [Rotated(orders=1, accounts=1, unreadable=())]
    assert key_ids(database) == {Keyring(NEW).key_id}
    with database.transaction() as connection:
        assert seal(connection, both, b"key", 1)["key_id"] == Keyring(NEW).key_id
        with pytest.raises(WrongMasterKey):
            seal(connection, Keyring(OLD), b"key", 1)
    certificates = Certificates(
        database, Keyring(NEW), Locks(database), ACMESettings("https://127.0.0.1:1/dir", None), "n", uuid4()
    )
    assert [each.domains for each in certificates.usable()] == [(DOMAIN,)]


def test_rows_no_key_reads_stay_do_not_stop_the_change_and_are_named(
    node: Callable[..., NodeProcess], database: Database
) -> None:
    lost = Keyring(bytes(32))
    add_certificate(database, Keyring(OLD), DOMAIN)
    add_certificate(database, lost, "b.example.com")
    one = node(MASTER_KEY=written(NEW), MASTER_KEY_PREVIOUS=written(OLD))  # never started: it is a command's settings
    done = run(one, "rotate-master-key")
    assert done.returncode == 1
    assert "encrypted anew: 1 keys of certificates" in done.stdout
    assert "can go" not in done.stdout
    assert f"of b.example.com: encrypted with master key {lost.key_id}" in done.stderr
    assert key_ids(database) == {Keyring(NEW).key_id, lost.key_id}
    one.environment["MASTER_KEY_PREVIOUS"] = written(bytes(32))
    done = run(one, "rotate-master-key")
    assert done.returncode == 0, done.stderr
    assert "MASTER_KEY_PREVIOUS can go" in done.stdout


def test_a_cluster_whose_key_this_node_does_not_have_is_left_alone(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("UPDATE cluster_state SET key_id = 'another'")
    with pytest.raises(WrongMasterKey, match=r"another.*MASTER_KEY_PREVIOUS"), database.transaction() as connection:
        rotate(connection, Keyring(NEW, OLD))

"""`lyttle-ops import` on a database as LyttleNGINX's own migrations make it."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg.types.json import Jsonb

from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.store import list_certificates, pending
from lyttle_ops.db import Database
from lyttle_ops.proxies import list_proxies
from tests.support.lyttlenginx import EARLY, LATER, NOW, Old, issue, pem

MASTER = bytes(range(32))


@pytest.fixture
def old(empty_database_url: str) -> Old:
    source = Old(empty_database_url)
    source.run(EARLY + LATER)
    return source


@dataclass
class Run:
    code: int
    out: str
    error: str

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads(self.out))

    def reasons(self, table: str) -> dict[str, str]:
        return {item["domains"]: item["note"] for item in self.result[table]["refused"]}


@pytest.fixture
def run(old: Old, database_url: str) -> Callable[..., Run]:
    def lyttle_ops(*arguments: str, source: str | None = None, stdin: str = "", **variables: str) -> Run:
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "MASTER_KEY": base64.b64encode(MASTER).decode(),
            "SOURCE_DATABASE_URL": source or old.url,
            **variables,
        }
        done = subprocess.run(
            [sys.executable, "-m", "lyttle_ops.cli", "import", *arguments],
            env=environment, input=stdin, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return Run(done.returncode, done.stdout, done.stderr)

    return lyttle_ops


def test_entries_and_certificates_arrive_and_nothing_is_ordered_anew(
    old: Old, run: Callable[..., Run], database: Database
) -> None:
    old.entry("www.example.com; example.com;", ssl=True)
    old.entry("plain.example.com", "https://10.0.0.5:8443/", nginx_custom_code="add_header X-A b;")
    chain, key = issue("example.com", "www.example.com")
    old.certificate("www.example.com;example.com", chain, key)
    done = run("--json")
    assert done.code == 0, done.error
    assert done.result["complete"]
    with database.connection() as connection:
        secured, plain = list_proxies(connection)
        (certificate,) = list_certificates(connection)
        assert pending(connection, leader=True) == []  # a node would order what stands here
        row = connection.execute("SELECT * FROM certificate_orders").fetchone()
    assert secured.domains == ("example.com", "www.example.com")
    assert (secured.ssl, secured.force_https, secured.read_timeout) == (True, False, 86_400)
    assert (plain.verify_upstream_tls, plain.nginx_custom_code) == (False, "add_header X-A b;")
    assert certificate.state == "issued"
    assert certificate.not_after == NOW + timedelta(days=60)
    assert certificate.renew_at
    assert NOW < certificate.renew_at < certificate.not_after
    assert row
    assert row["chain_pem"] == chain
    stored = Keyring(MASTER).decrypt(bytes(row["private_key"]), row["certificate_id"], row["key_id"])
    assert stored.decode() == key


def test_a_second_run_imports_nothing_and_changes_nothing(
    old: Old, run: Callable[..., Run], database: Database
) -> None:
    old.entry("a.example.com", ssl=True)
    old.certificate("a.example.com", *issue("a.example.com"))
    first = run("--json").result
    old.run('UPDATE "ProxyEntry" SET proxy_pass_host = %s', "http://elsewhere:1")
    with database.connection() as connection:
        before = connection.execute("SELECT revision FROM cluster_state").fetchone()
    second = run("--json")
    assert second.code == 0
    assert first["proxies"]["imported"][0]["id"] == second.result["proxies"]["present"][0]["id"]
    assert second.result["proxies"]["imported"] == second.result["certificates"]["imported"] == []
    assert len(second.result["certificates"]["present"]) == 1
    with database.connection() as connection:
        assert connection.execute("SELECT revision FROM cluster_state").fetchone() == before
        assert list_proxies(connection)[0].proxy_pass_host == "http://backend:8080"


def test_a_dry_run_says_the_same_and_does_nothing(old: Old, run: Callable[..., Run], database: Database) -> None:
    old.entry("a.example.com", ssl=True)
    old.certificate("a.example.com", *issue("a.example.com"))
    done = run("--dry-run")
    assert done.code == 0
    assert "entries: 1 would be imported, 0 already here, 0 refused" in done.out
    with database.connection() as connection:
        assert list_proxies(connection) == []
        assert list_certificates(connection) == []


def test_what_cannot_be_imported_is_named_with_the_reason_and_the_rest_goes_in(
    old: Old, run: Callable[..., Run], database: Database
) -> None:
    old.entry("good.example.com")
    old.entry("*.wild.example.com")
    old.entry("files.example.com", nginx_custom_code="location / { root /var/www; }")
    old.entry("variable.example.com", "http://$host:80")
    old.entry("other.example.com;good.example.com")
    done = run("--json")
    assert done.code == 3
    assert not done.result["complete"]
    reasons = done.reasons("proxies")
    assert "wildcard" in reasons["*.wild.example.com"]
    assert "root" in reasons["files.example.com"]
    assert "holds a variable" in reasons["variable.example.com"]
    assert "good.example.com belongs to proxy entry" in reasons["other.example.com;good.example.com"]
    with database.connection() as connection:
        assert [proxy.domains for proxy in list_proxies(connection)] == [("good.example.com",)]


def test_redirects_lead_where_they_led(old: Old, run: Callable[..., Run], database: Database) -> None:
    old.entry("path.example.com", "https://new.example.com$request_uri", type="REDIRECT")
    old.entry("root.example.com", "https://new.example.com/landing", type="REDIRECT")
    assert run().code == 0
    with database.connection() as connection:
        path, root = list_proxies(connection)
    assert (path.proxy_pass_host, path.redirect_code, path.nginx_custom_code) == ("https://new.example.com", 301, "")
    assert root.nginx_custom_code == 'return 301 "https://new.example.com/landing";'


def test_a_target_with_a_path_is_imported_with_a_warning(old: Old, run: Callable[..., Run]) -> None:
    old.entry("a.example.com", "http://backend/base")
    (item,) = run("--json").result["proxies"]["imported"]
    assert "/base/x" in item["note"]


def test_certificates_that_cannot_be_served_are_refused_each_with_its_reason(
    old: Old, run: Callable[..., Run], database: Database
) -> None:
    good, key = issue("good.example.com", key=rsa.generate_private_key(65537, 2048))
    old.certificate("good.example.com", good, key)
    old.certificate("key.example.com", issue("key.example.com")[0], issue("key.example.com")[1])
    old.certificate("late.example.com", *issue("late.example.com", days=-1))
    old.certificate("early.example.com", *issue("early.example.com", since=5))
    old.certificate("names.example.com", *issue("elsewhere.example.com"))
    old.certificate("kind.example.com", *issue("kind.example.com", key=ed25519.Ed25519PrivateKey.generate()))
    old.certificate("small.example.com", *issue("small.example.com", key=rsa.generate_private_key(65537, 1024)))
    old.certificate("torn.example.com", "-----BEGIN CERTIFICATE-----", key)
    old.certificate("empty.example.com", "", "", status="failed")
    old.certificate("orphan.example.com", *issue("orphan.example.com"), isOrphaned=True)
    done = run("--json")
    assert done.code == 3
    expected = {
        "key.example.com": "does not belong to its certificate",
        "late.example.com": "expired on",
        "early.example.com": "not valid before",
        "names.example.com": "not for names.example.com (its names: elsewhere.example.com)",
        "kind.example.com": "neither RSA nor EC",
        "small.example.com": "1024 bits",
        "torn.example.com": "cannot be read",
        "empty.example.com": "no certificate (status failed)",
        "orphan.example.com": "orphaned",
    }
    reasons = done.reasons("certificates")
    assert reasons.keys() == expected.keys()
    assert [domains for domains, reason in expected.items() if reason not in reasons[domains]] == []
    with database.connection() as connection:
        assert [each.domains for each in list_certificates(connection)] == [("good.example.com",)]
    assert "PRIVATE KEY" not in done.out + done.error


def test_keys_in_older_forms_and_chains_in_another_order_are_understood(
    old: Old, run: Callable[..., Run], database: Database
) -> None:
    key = rsa.generate_private_key(65537, 2048)
    chain, _ = issue("a.example.com", key=key)
    leaf, root = (f"-----BEGIN CERTIFICATE-----{part}" for part in chain.split("-----BEGIN CERTIFICATE-----")[1:])
    old.certificate("a.example.com", root + leaf, pem(key, serialization.PrivateFormat.TraditionalOpenSSL))
    assert run().code == 0
    with database.connection() as connection:
        row = connection.execute("SELECT chain_pem FROM certificate_orders").fetchone()
    assert row
    assert row["chain_pem"] == chain


def test_of_two_certificates_for_the_same_names_the_longer_lived_one_is_taken(
    old: Old, run: Callable[..., Run], database: Database
) -> None:
    old.certificate("a.example.com", *issue("a.example.com", days=20))
    old.certificate("a.example.com", *issue("a.example.com", days=80))
    assert run().code == 0
    with database.connection() as connection:
        (certificate,) = list_certificates(connection)
    assert certificate.not_after == NOW + timedelta(days=80)


def envelope(key_pem: str, secret: bytes) -> tuple[str, dict[str, Any]]:
    """As its newest version keeps private keys: a data key for each, wrapped with the master key."""

    def seal(key: bytes, plaintext: bytes, about: object) -> tuple[bytes, dict[str, str]]:
        nonce, aad = os.urandom(12), json.dumps(about, separators=(",", ":")).encode()
        sealed = AESGCM(key).encrypt(nonce, plaintext, aad)
        parts = {"iv": nonce, "authTag": sealed[-16:], "aad": aad}
        return sealed[:-16], {name: base64.b64encode(part).decode() for name, part in parts.items()}

    data_key = os.urandom(32)
    content, payload = seal(data_key, key_pem.encode(), {"secretType": "tls-private-key"})
    wrapped, wrapping = seal(secret, data_key, {"provider": "local-master-key"})
    wrapping["ciphertext"] = base64.b64encode(wrapped).decode()
    metadata = {"scheme": "lyttle-private-key-envelope/v1", "wrappedDataKey": wrapping, "payload": payload}
    return base64.b64encode(content).decode(), metadata


@pytest.mark.parametrize("written", ["hexadecimal", "base64", "passphrase"])
def test_encrypted_private_keys_are_decrypted_with_its_master_key(
    old: Old, run: Callable[..., Run], database: Database, written: str
) -> None:
    raw = os.urandom(32)
    secret = {
        "hexadecimal": raw.hex(),
        "base64": base64.b64encode(raw).decode(),
        "passphrase": "a long passphrase of theirs!",
    }[written]
    if written == "passphrase":
        raw = sha256(secret.encode()).digest()
    chain, key = issue("a.example.com")
    sealed, metadata = envelope(key, raw)
    old.certificate("a.example.com", chain, sealed, keyEncryption=Jsonb(metadata))
    without = run("--json")
    assert without.code == 3
    assert "SOURCE_MASTER_KEY" in without.reasons("certificates")["a.example.com"]
    other = run("--json", SOURCE_MASTER_KEY="0" * 64)
    assert "another key" in other.reasons("certificates")["a.example.com"]
    assert run("--from-url-file", "-", stdin=f"{old.url}\n{secret}\n", SOURCE_DATABASE_URL="").code == 0
    with database.connection() as connection:
        assert len(list_certificates(connection)) == 1


def test_prismas_own_url_parameters_are_understood_and_another_schema_is_found(
    old: Old, run: Callable[..., Run]
) -> None:
    old.run('CREATE SCHEMA proxies; ALTER TABLE "ProxyEntry" SET SCHEMA proxies')
    old.run('ALTER TABLE proxies."ProxyEntry" RENAME TO proxy_entry; ALTER TABLE "Certificate" SET SCHEMA proxies')
    old.run('ALTER TABLE proxies."Certificate" RENAME "certPem" TO cert_pem')
    old.run("INSERT INTO proxies.proxy_entry (domains, proxy_pass_host) VALUES ('a.example.com', 'http://b')")
    done = run("--json", source=f"{old.url}?schema=proxies&connection_limit=20&pool_timeout=10&connect_timeout=10")
    assert done.code == 0, done.error
    assert len(done.result["proxies"]["imported"]) == 1


def test_the_first_version_without_ssl_and_certificates_is_imported(
    run: Callable[..., Run], old: Old, database: Database
) -> None:
    old.run('DROP TABLE "Certificate"; ALTER TABLE "ProxyEntry" DROP COLUMN ssl')
    old.entry("a.example.com")
    assert run().code == 0
    with database.connection() as connection:
        assert not list_proxies(connection)[0].ssl


def test_passwords_come_by_file_or_standard_input_and_never_by_argument(
    old: Old, run: Callable[..., Run], tmp_path: Path, database_url: str
) -> None:
    password = old.url.split(":")[2].split("@")[0]
    refused = run("--source-url", old.url)
    assert refused.code == 2
    assert password not in refused.error
    file = tmp_path / "url"
    file.write_text(old.url + "\n")
    assert run("--from-url-file", str(file), SOURCE_DATABASE_URL="").code == 0
    assert run(SOURCE_DATABASE_URL="", SOURCE_DATABASE_URL_FILE=str(file)).code == 0
    assert run("--source-url", old.url.replace(f":{password}", ""), PGPASSWORD=password).code == 0
    wrong = run(source=old.url.replace(password, "wr0ng-password"))
    assert wrong.code == 1
    assert "wr0ng-password" not in wrong.error


def test_another_database_and_another_master_key_are_refused(
    old: Old, run: Callable[..., Run], database_url: str
) -> None:
    wrong = run(source=database_url)
    assert wrong.code == 1
    assert 'no table "ProxyEntry"' in wrong.error
    assert run().code == 0
    key = run(MASTER_KEY=base64.b64encode(bytes(32)).decode())
    assert key.code == 1
    assert "MASTER_KEY is not the cluster's" in key.error


def test_nothing_of_the_source_is_changed(old: Old, run: Callable[..., Run]) -> None:
    old.entry("a.example.com")
    before = old.run('SELECT * FROM "ProxyEntry"')
    assert run().code == 0
    assert old.run('SELECT * FROM "ProxyEntry"') == before

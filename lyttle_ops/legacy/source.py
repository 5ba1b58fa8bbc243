"""Reading a LyttleNGINX database (TypeScript, Prisma): its tables ProxyEntry and Certificate, never written to.

Its schema grew: the first version has no `ssl` and no certificates, the last encrypts private keys. Tables and columns
are found by their names without case and underscores, so that "ProxyEntry" and proxy_entry, certPem and cert_pem are
one; a column that is missing has the value it would have had.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import pq, sql

from lyttle_ops.db import Database
from lyttle_ops.db.connection import Connection
from lyttle_ops.errors import LyttleOpsError

_ENVELOPE = "lyttle-private-key-envelope/v1"


class NotLyttleNGINX(LyttleOpsError):
    """This is no LyttleNGINX database."""


class KeyUnreadable(LyttleOpsError):
    """The private key cannot be decrypted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of ProxyEntry, as it stands there."""

    id: int
    domains: str  # separated by ;
    proxy_pass_host: str
    nginx_custom_code: str
    type: str
    ssl: bool


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """A row of Certificate, as it stands there."""

    id: str
    domains: str  # separated by ;
    chain_pem: str = field(repr=False)
    key: str = field(repr=False)  # PEM, or base64 when `envelope` says how it is encrypted
    envelope: Mapping[str, Any] | None = field(repr=False)
    orphaned: bool
    status: str


@dataclass(frozen=True, slots=True)
class Source:
    """All that is imported from."""

    entries: tuple[Entry, ...]
    certificates: tuple[StoredCertificate, ...]


def read(url: str) -> Source:
    """Everything in the database at `url`, which may be Prisma's form of one.

    Raises DatabaseError, and NotLyttleNGINX when it has no table ProxyEntry.
    """
    url, schema = from_prisma(url)
    database = Database(url, "lyttle/import", size=0)
    with (
        database.translated(),
        database.connect(options="-c default_transaction_read_only=on -c statement_timeout=60s") as connection,
        connection.transaction(),
    ):
        tables = _tables(connection, schema)
        if "proxyentry" not in tables:
            raise NotLyttleNGINX(
                f'{database.address} has no table "ProxyEntry" in the schema {schema}: is this LyttleNGINX\'s '
                "database, and may this user read it?"
            )
        entries = _rows(connection, schema, tables["proxyentry"])
        certificates = _rows(connection, schema, tables["certificate"]) if "certificate" in tables else []
    return Source(
        tuple(sorted(map(_entry, entries), key=lambda entry: entry.id)),
        tuple(sorted(map(_certificate, certificates), key=lambda certificate: certificate.id)),
    )


def from_prisma(url: str) -> tuple[str, str]:
    """A URL that libpq takes, and the schema's name. Prisma's own parameters fall out, libpq's stay."""
    parts = urlsplit(url)
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    schema, kept = "public", []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "schema":
            schema = value
        elif name == "sslcert":  # there it is the server's root, here the client's own
            kept.append(("sslrootcert", value))
        elif name in known:
            kept.append((name, value))
    return urlunsplit(parts._replace(query=urlencode(kept))), schema


def private_key(certificate: StoredCertificate, secret: str | None) -> str:
    """The certificate's key as PEM. `secret` is that installation's PRIVATE_KEY_ENCRYPTION_MASTER_KEY.

    Raises KeyUnreadable, without anything of the content.
    """
    envelope = certificate.envelope
    if "PRIVATE KEY-----" in certificate.key or not certificate.key.strip():
        return certificate.key
    if envelope is None or envelope.get("scheme") != _ENVELOPE:
        raise KeyUnreadable("its private key is neither PEM nor encrypted in a way that is known")
    if secret is None:
        raise KeyUnreadable(
            "its private key is encrypted: give LyttleNGINX's PRIVATE_KEY_ENCRYPTION_MASTER_KEY as SOURCE_MASTER_KEY"
        )
    try:
        wrapped, payload = envelope["wrappedDataKey"], envelope["payload"]
        data_key = _open(_key(secret), wrapped, base64.b64decode(wrapped["ciphertext"]))
        return _open(data_key, payload, base64.b64decode(certificate.key)).decode()
    except InvalidTag:
        raise KeyUnreadable("its private key does not decrypt: SOURCE_MASTER_KEY is another key") from None
    except (KeyError, TypeError, ValueError) as exc:
        raise KeyUnreadable(f"its private key's envelope cannot be understood: {type(exc).__name__}") from None


def _open(key: bytes, sealed: Mapping[str, str], ciphertext: bytes) -> bytes:
    """One layer of the envelope: AES-256-GCM with nonce, tag and associated data beside the ciphertext."""
    nonce, tag, associated = (base64.b64decode(sealed[name]) for name in ("iv", "authTag", "aad"))
    return AESGCM(key).decrypt(nonce, ciphertext + tag, associated)


def _key(secret: str) -> bytes:
    """Its 32 bytes: written as hexadecimal or base64, else the hash of a passphrase, as LyttleNGINX does it."""
    text = secret.strip()
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text)
    compact = re.sub(r"\s", "", text).replace("-", "+").replace("_", "/")
    letters = re.sub(r"[^A-Za-z0-9+/]", "", compact.split("=")[0])
    with_padding = letters + "=" * (-len(letters) % 4)
    if len(letters) % 4 != 1:
        decoded = base64.b64decode(with_padding)
        if len(decoded) == 32:
            return decoded
    return sha256(text.encode()).digest()


def _tables(connection: Connection, schema: str) -> dict[str, str]:
    rows = connection.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = %s ORDER BY table_name", (schema,)
    )
    return {_plain(row["table_name"]): row["table_name"] for row in rows}


def _rows(connection: Connection, schema: str, table: str) -> list[dict[str, Any]]:
    statement = sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))
    return [{_plain(name): value for name, value in row.items()} for row in connection.execute(statement)]


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(
        id=int(row["id"]),
        domains=str(row["domains"]),
        proxy_pass_host=str(row["proxypasshost"]),
        nginx_custom_code=str(row.get("nginxcustomcode") or ""),
        type=str(row.get("type") or "PROXY"),
        ssl=bool(row.get("ssl", False)),
    )


def _certificate(row: Mapping[str, Any]) -> StoredCertificate:
    envelope = row.get("keyencryption")
    return StoredCertificate(
        id=str(row["id"]),
        domains=str(row["domains"]),
        chain_pem=str(row["certpem"] or ""),
        key=str(row["keypem"] or ""),
        envelope=envelope if isinstance(envelope, Mapping) else None,
        orphaned=bool(row.get("isorphaned", False)),
        status=str(row.get("status") or "active"),
    )

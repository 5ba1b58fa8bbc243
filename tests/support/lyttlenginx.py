"""The database of a LyttleNGINX installation, and certificates to put into it."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from psycopg.rows import dict_row

NOW = datetime.now(UTC).replace(microsecond=0)

# The columns of its schema; an early one had neither ssl nor certificates.
EARLY = """
CREATE TYPE "ProxyType" AS ENUM ('REDIRECT', 'PROXY');
CREATE TABLE "ProxyEntry" (
    "id" SERIAL PRIMARY KEY, "proxy_pass_host" TEXT NOT NULL, "domains" TEXT NOT NULL, "nginx_custom_code" TEXT,
    "type" "ProxyType" NOT NULL DEFAULT 'PROXY');
"""
LATER = """
ALTER TABLE "ProxyEntry" ADD COLUMN "ssl" BOOLEAN NOT NULL DEFAULT false;
CREATE TABLE "Certificate" (
    "id" TEXT PRIMARY KEY, "domains" TEXT NOT NULL, "domainsHash" TEXT NOT NULL, "certPem" TEXT NOT NULL,
    "keyPem" TEXT NOT NULL, "expiresAt" TIMESTAMP(3) NOT NULL, "issuedAt" TIMESTAMP(3) NOT NULL,
    "lastUsedAt" TIMESTAMP(3) NOT NULL, "isOrphaned" BOOLEAN NOT NULL DEFAULT false,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, "updatedAt" TIMESTAMP(3) NOT NULL,
    "failureCount" INTEGER NOT NULL DEFAULT 0, "failureReason" TEXT, "issuedByNode" TEXT,
    "retryAfter" TIMESTAMP(3), "status" TEXT NOT NULL DEFAULT 'active', "keyEncryption" JSONB);
"""

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass
class Old:
    """A LyttleNGINX installation's database."""

    url: str

    def run(self, statement: str, *values: object) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    def entry(self, domains: str, target: str = "http://backend:8080", **columns: object) -> int:
        values = {"domains": domains, "proxy_pass_host": target, **columns}
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join(["%s"] * len(values))
        rows = self.run(f'INSERT INTO "ProxyEntry" ({names}) VALUES ({marks}) RETURNING id', *values.values())
        return int(rows[0]["id"])

    def certificate(self, domains: str, chain: str, key: str, **columns: object) -> str:
        values = {
            "id": secrets.token_hex(8), "domains": domains, "domainsHash": sha256(domains.encode()).hexdigest(),
            "certPem": chain, "keyPem": key, "expiresAt": NOW, "issuedAt": NOW, "lastUsedAt": NOW, "updatedAt": NOW,
            **columns,
        }  # fmt: skip
        names = ", ".join(f'"{name}"' for name in values)
        self.run(f'INSERT INTO "Certificate" ({names}) VALUES ({", ".join(["%s"] * len(values))})', *values.values())
        return str(values["id"])


def issue(*names: str, key: Key | None = None, days: int = 60, since: int = -30, chain: bool = True) -> tuple[str, str]:
    """Chain and key (PEM) of a certificate for these names, from a CA of its own."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test CA")])

    def sign(subject: x509.Name, public: Any, alternatives: tuple[str, ...]) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + timedelta(days=since))
            .not_valid_after(NOW + timedelta(days=days))
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in alternatives]), False)
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    leaf = sign(x509.Name([]), key.public_key(), names)
    root = sign(issuer, authority.public_key(), ())
    return (leaf + root if chain else leaf).decode(), pem(key)


def pem(key: Key, format: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8) -> str:
    return key.private_bytes(serialization.Encoding.PEM, format, serialization.NoEncryption()).decode()

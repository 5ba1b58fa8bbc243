"""Certificates that came from elsewhere with their keys: examined, stored as issued, renewed when they are due.

They have an order of their own in the ledger, of no CA: the account that ordered them is not ours, so neither renewal
information nor `replaces` (RFC 9773) can be asked for them. The first renewal makes them ours.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from lyttle_ops.certificates import renewal
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.model import domain_set
from lyttle_ops.certificates.sealing import seal
from lyttle_ops.db import load_queries
from lyttle_ops.db.connection import Connection
from lyttle_ops.errors import LyttleOpsError

queries = load_queries("lyttle_ops.certificates")

_SMALLEST_RSA = 2048  # bits; OpenSSL refuses less at its default security level
_NOBODY = UUID(int=0)


class CannotAdopt(LyttleOpsError):
    """This certificate cannot be served."""


@dataclass(frozen=True, slots=True)
class Found:
    """A certificate that can be served for `domains`."""

    domains: tuple[str, ...]
    chain_pem: str = field(repr=False)
    key_pem: bytes = field(repr=False)
    serial: str
    not_before: datetime
    not_after: datetime


def examine(domains: Iterable[str], chain_pem: str, key_pem: str, now: datetime) -> Found:
    """The certificate, its chain and its key (PEM), when they fit and are good at `now`. Raises CannotAdopt."""
    names = domain_set(domains)
    try:
        chain = x509.load_pem_x509_certificates(chain_pem.encode())
    except ValueError as exc:
        raise CannotAdopt(f"its certificate cannot be read: {exc}") from None
    key = _key(key_pem)
    own = _public(key.public_key())
    leaf = next((each for each in chain if _public(each.public_key()) == own), None)
    if leaf is None:
        raise CannotAdopt("its private key does not belong to its certificate")
    if leaf.not_valid_after_utc <= now:
        raise CannotAdopt(f"it expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
    if leaf.not_valid_before_utc > now:
        raise CannotAdopt(f"it is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}")
    covered = _names(leaf)
    missing = [name for name in names if name not in covered and f"*.{name.partition('.')[2]}" not in covered]
    if missing:
        raise CannotAdopt(f"it is not for {', '.join(missing)} (its names: {', '.join(sorted(covered)) or 'none'})")
    ordered = [leaf, *(each for each in chain if each is not leaf)]
    return Found(
        domains=names,
        chain_pem="".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in ordered),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        serial=f"{leaf.serial_number:x}",
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )


def adopt(connection: Connection, keyring: Keyring, found: Found, origin: str) -> int | None:
    """Make it the served certificate of its domains; its id, None when they have one already, which stays.

    `connection` is in a transaction; `origin` stands where an order names its CA.
    """
    wanted = {"domains": list(found.domains)}
    connection.execute(queries.create, wanted)
    row = connection.execute(queries.lock_certificate, wanted).fetchone()
    assert row is not None  # it was made just now, if it was not there
    if row["order_id"] is not None:
        return None
    certificate_id = int(row["id"])
    order = connection.execute(
        queries.adopt_order,
        {
            **seal(connection, keyring, found.key_pem, certificate_id),
            "certificate_id": certificate_id,
            "origin": origin,
            "instance_id": _NOBODY,
            "chain_pem": found.chain_pem,
            "serial": found.serial,
            "not_before": found.not_before,
            "not_after": found.not_after,
        },
    ).fetchone()
    assert order is not None
    planned = renewal.planned(found.not_before, found.not_after, renewal.jitter(certificate_id, order["id"]))
    connection.execute(queries.adopt, {"id": certificate_id, "order_id": order["id"], "renew_at": planned})
    return certificate_id


def _key(pem: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        raise CannotAdopt("its private key is protected by a password") from None
    except Exception:  # cryptography names many, and a message might quote the key
        raise CannotAdopt("its private key cannot be read; accepted: PEM, RSA or EC") from None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _SMALLEST_RSA:
            raise CannotAdopt(f"its RSA key has {key.key_size} bits; at least {_SMALLEST_RSA} are needed")
        return key
    raise CannotAdopt("its private key is neither RSA nor EC")


def _public(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in names.get_values_for_type(x509.DNSName)}

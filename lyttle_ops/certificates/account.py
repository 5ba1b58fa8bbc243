"""The cluster's one account at a CA (RFC 8555 7.3): its key first, without the network; registered when needed.

The key's thumbprint is what every node answers HTTP-01 with, so it exists before the first render.
"""

import logging
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.b64 import b64encode
from josepy.jwk import JWKEC

from lyttle_ops.certificates.acme import CA
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.problems import AccountDeactivated, CAUnreachable
from lyttle_ops.certificates.sealing import account_name, seal
from lyttle_ops.cluster.locks import LockNotAcquired, Locks
from lyttle_ops.db import Database, load_queries
from lyttle_ops.db.connection import Connection

log = logging.getLogger(__name__)

queries = load_queries("lyttle_ops.certificates")

REGISTRATION_TIMEOUT = 20.0  # seconds to wait for another node that is registering


@dataclass(frozen=True, slots=True)
class _Row:
    key_id: str
    private_key: bytes
    account_url: str | None


class Account:
    """The account at `directory_url`. Thread-safe: its state is the row in acme_accounts."""

    def __init__(self, database: Database, keyring: Keyring, locks: Locks, directory_url: str, email: str | None):
        self._database, self._keyring, self._locks = database, keyring, locks
        self._directory_url = directory_url
        self._email = email
        self._decrypted: tuple[bytes, JWKEC] | None = None

    def key(self) -> JWKEC:
        """The account's key, made when there is none. Raises WrongMasterKey, Undecryptable, DatabaseError."""
        return self._decrypt(self._row())

    def thumbprint(self) -> str:
        """RFC 7638 thumbprint of the key, base64url: what follows the token in each HTTP-01 answer."""
        return b64encode(self.key().thumbprint()).decode()

    def attach(self, ca: CA) -> None:
        """Make `ca` sign as the account, registering it when it is not. Raises CAError, AccountDeactivated."""
        row = self._row_for(ca)
        if row.account_url is not None:
            ca.use_account(row.account_url)
        else:
            self.register(ca, unless=None)

    def register(self, ca: CA, unless: str | None) -> None:
        """Register with the CA, one node at a time; used as well when the CA has forgotten the account.

        When the recorded URL is not `unless` any more, another node has just done it.
        """
        try:
            with self._locks.lock(f"acme:account:{self._directory_url}", REGISTRATION_TIMEOUT):
                row = self._row_for(ca)
                if row.account_url not in (None, unless):
                    ca.use_account(str(row.account_url))
                    return
                url = ca.register(self._email)
                with self._database.connection() as connection:
                    connection.execute(
                        queries.register_account,
                        {"directory_url": self._directory_url, "private_key": row.private_key, "account_url": url},
                    )
                log.info("Registered at the CA %s as %s", self._directory_url, url)
        except LockNotAcquired as exc:
            raise CAUnreachable("another node is still registering the account with the CA") from exc

    def url(self) -> str | None:
        """Where the CA keeps it, None when it is not registered."""
        return self._row().account_url

    def replace(self, ca: CA, reason: AccountDeactivated) -> None:
        """Make a new key, since the CA has closed the account of the one `ca` signs with; once for all who notice."""
        try:
            row = self._row_for(ca)
        except CAUnreachable:
            return  # somebody has done it
        values = {"directory_url": self._directory_url, "old_private_key": row.private_key}
        with self._database.transaction() as connection:
            replaced = connection.execute(queries.replace_account, {**values, **self._new_key(connection)}).fetchone()
        if replaced:
            log.warning("The CA %s has closed the account (%s): made a new one", self._directory_url, reason)

    def _row_for(self, ca: CA) -> _Row:
        row = self._row()
        if self._decrypt(row) != ca.key:
            raise CAUnreachable("the account's key was replaced meanwhile; the next try uses the new one")
        return row

    def _row(self) -> _Row:
        row = self._select()
        if row is None:
            with self._database.transaction() as connection:
                values = {**self._new_key(connection), "directory_url": self._directory_url}
                connection.execute(queries.create_account, values)
            row = self._select()
        if row is None:
            raise RuntimeError("acme_accounts lost a row that was just written")
        return row

    def _select(self) -> _Row | None:
        with self._database.connection() as connection:
            row = connection.execute(queries.account, {"directory_url": self._directory_url}).fetchone()
        return None if row is None else _Row(row["key_id"], bytes(row["private_key"]), row["account_url"])

    def _decrypt(self, row: _Row) -> JWKEC:
        known = self._decrypted
        if known is not None and known[0] == row.private_key:
            return known[1]
        pem = self._keyring.decrypt(row.private_key, self._row_name, row.key_id)
        key = JWKEC(key=serialization.load_pem_private_key(pem, password=None))
        self._decrypted = (row.private_key, key)
        return key

    def _new_key(self, connection: Connection) -> dict[str, object]:
        return seal(connection, self._keyring, new_private_key(), self._row_name)

    @property
    def _row_name(self) -> str:
        return account_name(self._directory_url)


def new_private_key() -> bytes:
    """A fresh EC P-256 key, PEM (PKCS #8)."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

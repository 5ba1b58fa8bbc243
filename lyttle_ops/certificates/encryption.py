"""Private keys at rest: AES-256-GCM under a master key that only the nodes hold (NIST SP 800-38D).

A ciphertext is nonce (12 bytes) || ciphertext || tag (16 bytes). Its associated data names the certificate
and the master key, so a row moved to another certificate does not decrypt. While the master key is being changed a
node holds two: each row names the one it needs (lyttle_ops.certificates.sealing has the rest).
"""

import os
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lyttle_ops.errors import LyttleOpsError

KEY_SIZE = 32
_NONCE_SIZE = 12
_TAG_SIZE = 16


class Undecryptable(LyttleOpsError):
    """What is stored cannot be decrypted: it was changed, or moved from another row."""


class WrongMasterKey(Undecryptable):
    """What is stored was encrypted with another master key."""


class Keyring:
    """The master key (32 bytes), and the previous one while it is being changed. `key_id` names the first without
    revealing it, `key_ids` all of them."""

    def __init__(self, master_key: bytes, previous: bytes | None = None) -> None:
        keys = [master_key] if previous is None else [master_key, previous]
        if any(len(key) != KEY_SIZE for key in keys):
            raise ValueError(f"a master key must have {KEY_SIZE} bytes")
        self._keys = {_key_id(key): key for key in keys}
        self.key_id = _key_id(master_key)
        self.key_ids = tuple(self._keys)
        # Each purpose has a key of its own (NIST SP 800-108), so one cannot be played against another.
        self._ciphers = {key_id: AESGCM(self.derive("private keys", key_id)) for key_id in self.key_ids}

    def __repr__(self) -> str:
        return f"Keyring(key_id={self.key_id!r})"

    def derive(self, purpose: str, key_id: str | None = None) -> bytes:
        """32 bytes for one purpose, the same on every node (HKDF-SHA256, RFC 5869). Raises WrongMasterKey."""
        key_id = self._known(key_id or self.key_id)
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"lyttle-ops " + purpose.encode()).derive(
            self._keys[key_id]
        )

    def encrypt(self, plaintext: bytes, certificate_id: str | int, key_id: str | None = None) -> bytes:
        """Encrypt under a fresh random nonce, bound to `certificate_id`; with MASTER_KEY when no key is named.

        Raises WrongMasterKey when this node does not have the key `key_id`.
        """
        key_id = self._known(key_id or self.key_id)
        # 96 random bits collide after about 2^32 messages (SP 800-38D 8.3); a cluster makes thousands.
        nonce = os.urandom(_NONCE_SIZE)
        return nonce + self._ciphers[key_id].encrypt(nonce, plaintext, self._associated(certificate_id, key_id))

    def decrypt(self, ciphertext: bytes, certificate_id: str | int, key_id: str) -> bytes:
        """The plaintext. Raises WrongMasterKey or Undecryptable, neither with anything of the content."""
        cipher = self._ciphers[self._known(key_id)]
        if len(ciphertext) < _NONCE_SIZE + _TAG_SIZE:
            raise Undecryptable
        try:
            return cipher.decrypt(
                ciphertext[:_NONCE_SIZE], ciphertext[_NONCE_SIZE:], self._associated(certificate_id, key_id)
            )
        except InvalidTag:
            raise Undecryptable from None

    def _known(self, key_id: str) -> str:
        if key_id not in self._keys:
            raise WrongMasterKey(f"encrypted with master key {key_id}, this node has {' and '.join(self.key_ids)}")
        return key_id

    @staticmethod
    def _associated(certificate_id: str | int, key_id: str) -> bytes:
        return f"{certificate_id}:{key_id}".encode()


def _key_id(master_key: bytes) -> str:
    return sha256(master_key).hexdigest()[:16]

"""Private keys at rest: AES-256-GCM under a master key that only the nodes hold (NIST SP 800-38D).

A ciphertext is nonce (12 bytes) || ciphertext || tag (16 bytes). Its associated data names the certificate
and the master key, so a row moved to another certificate does not decrypt.
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
    """The master key (32 bytes) and what is derived from it. `key_id` names it without revealing it."""

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != KEY_SIZE:
            raise ValueError(f"the master key must have {KEY_SIZE} bytes")
        self._master_key = master_key
        self.key_id = sha256(master_key).hexdigest()[:16]
        # Each purpose has a key of its own (NIST SP 800-108), so one cannot be played against another.
        self._cipher = AESGCM(self.derive("private keys"))

    def __repr__(self) -> str:
        return f"Keyring(key_id={self.key_id!r})"

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose, the same on every node (HKDF-SHA256, RFC 5869)."""
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"lyttle-ops " + purpose.encode()).derive(
            self._master_key
        )

    def encrypt(self, plaintext: bytes, certificate_id: str | int) -> bytes:
        """Encrypt under a fresh random nonce, bound to `certificate_id`."""
        # 96 random bits collide after about 2^32 messages (SP 800-38D 8.3); a cluster makes thousands.
        nonce = os.urandom(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, plaintext, self._associated(certificate_id, self.key_id))

    def decrypt(self, ciphertext: bytes, certificate_id: str | int, key_id: str) -> bytes:
        """The plaintext. Raises WrongMasterKey or Undecryptable, neither with anything of the content."""
        if key_id != self.key_id:
            raise WrongMasterKey(f"encrypted with master key {key_id}, this node has {self.key_id}")
        if len(ciphertext) < _NONCE_SIZE + _TAG_SIZE:
            raise Undecryptable
        try:
            return self._cipher.decrypt(
                ciphertext[:_NONCE_SIZE], ciphertext[_NONCE_SIZE:], self._associated(certificate_id, key_id)
            )
        except InvalidTag:
            raise Undecryptable from None

    @staticmethod
    def _associated(certificate_id: str | int, key_id: str) -> bytes:
        return f"{certificate_id}:{key_id}".encode()

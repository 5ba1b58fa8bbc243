"""Passwords: argon2id hashes, checked in the same time whether or not the user exists.

Cost: 19 MiB, 2 passes, 1 lane (OWASP Password Storage Cheat Sheet), about 20 ms. It is the smallest that OWASP
accepts, since the API shares its container's memory with NGINX.
"""

import secrets
from functools import cache

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from lyttle_ops.errors import LyttleOpsError

SHORTEST_PASSWORD = 8  # characters (NIST SP 800-63B section 5.1.1.2)
LONGEST_PASSWORD = 1024  # characters; bounds the work of hashing
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)


class PasswordRefused(LyttleOpsError):
    """The password must have 8 to 1024 characters."""


def hash_password(password: str) -> str:
    """An argon2id hash in PHC string format. Raises PasswordRefused."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise PasswordRefused
    return _HASHER.hash(password)


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether `password` is the one; with None (no such user) False, after the same work."""
    reference = _reference_hash()  # made even when not needed, or the first unknown user would take longer
    try:
        _HASHER.verify(password_hash or reference, password)
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


def needs_upgrade(password_hash: str) -> bool:
    """Whether the hash was made with other cost parameters than today's."""
    return _HASHER.check_needs_rehash(password_hash)


def generate_password() -> str:
    """A new password with 144 random bits."""
    return secrets.token_urlsafe(18)


@cache
def _reference_hash() -> str:
    return _HASHER.hash(secrets.token_urlsafe(18))

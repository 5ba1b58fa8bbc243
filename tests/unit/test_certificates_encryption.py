"""Private keys at rest."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyttle_ops.certificates.encryption import Keyring, Undecryptable, WrongMasterKey

MASTER = bytes(range(32))
KEYRING = Keyring(MASTER)


@given(st.binary(max_size=2000), st.integers(1, 2**40))
def test_what_was_encrypted_comes_back_for_the_same_certificate(plaintext: bytes, certificate: int) -> None:
    assert KEYRING.decrypt(KEYRING.encrypt(plaintext, certificate), certificate, KEYRING.key_id) == plaintext


def test_the_same_key_never_looks_the_same_twice() -> None:
    assert KEYRING.encrypt(b"key", 1) != KEYRING.encrypt(b"key", 1)


def test_a_row_moved_to_another_certificate_does_not_decrypt() -> None:
    with pytest.raises(Undecryptable):
        KEYRING.decrypt(KEYRING.encrypt(b"key", 1), 2, KEYRING.key_id)


@pytest.mark.parametrize("position", [0, 12, -1])
def test_a_changed_byte_anywhere_is_noticed(position: int) -> None:
    ciphertext = bytearray(KEYRING.encrypt(b"a private key", 1))
    ciphertext[position] ^= 1
    with pytest.raises(Undecryptable):
        KEYRING.decrypt(bytes(ciphertext), 1, KEYRING.key_id)


def test_something_too_short_to_be_a_ciphertext_is_refused() -> None:
    with pytest.raises(Undecryptable):
        KEYRING.decrypt(b"short", 1, KEYRING.key_id)


def test_another_master_key_is_told_apart_from_damage_and_both_are_named() -> None:
    other = Keyring(bytes(32))
    with pytest.raises(WrongMasterKey, match=f"{KEYRING.key_id}.*{other.key_id}"):
        other.decrypt(KEYRING.encrypt(b"key", 1), 1, KEYRING.key_id)


def test_the_key_id_is_the_start_of_the_master_keys_hash() -> None:
    assert KEYRING.key_id == sha256(MASTER).hexdigest()[:16]


def test_derived_keys_are_the_same_everywhere_and_differ_by_purpose() -> None:
    assert KEYRING.derive("tokens") == Keyring(MASTER).derive("tokens")
    assert len({KEYRING.derive("tokens"), KEYRING.derive("other"), MASTER}) == 3
    assert len(KEYRING.derive("tokens")) == 32


def test_the_master_key_is_not_shown() -> None:
    assert repr(KEYRING) == f"Keyring(key_id='{KEYRING.key_id}')"


def test_a_short_master_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Keyring(b"short")

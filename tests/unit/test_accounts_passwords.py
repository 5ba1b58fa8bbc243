"""Password hashes."""

import pytest

from lyttle_ops.accounts.passwords import (
    PasswordRefused,
    generate_password,
    hash_password,
    needs_upgrade,
    verify_password,
)


def test_a_hash_is_argon2id_and_verifies_its_password_only() -> None:
    stored = hash_password("correct horse")
    assert stored.startswith("$argon2id$")
    assert verify_password(stored, "correct horse")
    assert not verify_password(stored, "correct horse ")
    assert not needs_upgrade(stored)


def test_an_unknown_user_costs_a_whole_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time of the answer would tell which names exist."""
    verified = []
    original = type(__import__("lyttle_ops.accounts.passwords", fromlist=["_HASHER"])._HASHER).verify

    def counted(self: object, password_hash: str, password: str) -> bool:
        verified.append(password_hash)
        return bool(original(self, password_hash, password))

    monkeypatch.setattr("argon2.PasswordHasher.verify", counted)
    assert not verify_password(None, "anything")
    assert len(verified) == 1
    assert verified[0].split("$")[1:4] == hash_password("other password").split("$")[1:4]  # the same cost


def test_a_broken_hash_refuses_instead_of_failing() -> None:
    assert not verify_password("not a hash", "anything")


@pytest.mark.parametrize("password", ["", "short", "x" * 1025])
def test_a_password_too_short_or_too_long_is_refused(password: str) -> None:
    with pytest.raises(PasswordRefused):
        hash_password(password)


def test_generated_passwords_differ_and_are_accepted() -> None:
    first, second = generate_password(), generate_password()
    assert first != second
    assert hash_password(first)

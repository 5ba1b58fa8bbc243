"""Whether the database configuration is the one that last worked here."""

from pathlib import Path

import pytest

from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.db import DatabaseBusy, DatabaseError, DatabaseMisconfigured, DatabaseUnavailable, LoginRefused
from lyttle_ops.node.mark import DatabaseMark

OLD, NEW = bytes(range(32)), bytes(32)
PASSWORD = "s3cret"


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    file.write_text("a root")
    return file


def mark(
    folder: Path, roots: Path, host: str = "db", keyring: Keyring | None = None, owner: str = "owner"
) -> DatabaseMark:
    url = f"postgresql://app:{PASSWORD}@{host}:5432/x?sslmode=verify-full&sslrootcert={roots}"
    return DatabaseMark(folder, keyring or Keyring(OLD), [url, f"postgresql://{owner}:{PASSWORD}@{host}/x"])


def test_what_worked_is_known_again_and_every_change_is_seen(tmp_path: Path, roots: Path) -> None:
    assert mark(tmp_path, roots).changed is None
    mark(tmp_path, roots).worked()
    assert mark(tmp_path, roots).changed is False
    assert mark(tmp_path, roots, host="elsewhere").changed is True
    assert mark(tmp_path, roots, owner="other").changed is True
    roots.write_text("another root")
    assert mark(tmp_path, roots).changed is True
    roots.unlink()
    assert mark(tmp_path, roots).changed is True


def test_it_survives_the_change_of_the_master_key_and_tells_nobody_the_password(tmp_path: Path, roots: Path) -> None:
    mark(tmp_path, roots).worked()
    (file,) = tmp_path.glob("*.mark")
    assert file.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in file.read_text()
    both = mark(tmp_path, roots, keyring=Keyring(NEW, OLD))
    assert both.changed is False
    both.worked()
    assert mark(tmp_path, roots, keyring=Keyring(NEW)).changed is False
    assert mark(tmp_path, roots, keyring=Keyring(OLD)).changed is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\0"])
def test_a_damaged_mark_is_none(tmp_path: Path, roots: Path, text: str) -> None:
    (tmp_path / "database.mark").write_text(text)
    assert mark(tmp_path, roots).changed is None


AWAY = (DatabaseUnavailable("no route"), DatabaseBusy("lock timeout"))
REFUSED = (LoginRefused("password authentication failed"),)
UNUSABLE = (DatabaseMisconfigured("permission denied for schema"), DatabaseError("a migration failed"))


def blamed(known: DatabaseMark) -> set[DatabaseError]:
    return {error for error in (*AWAY, *REFUSED, *UNUSABLE) if known.blames(error)}


def test_what_postgresql_says_is_blamed_on_what_is_new_here(
    tmp_path: Path, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert blamed(mark(tmp_path, roots)) == {*REFUSED, *UNUSABLE}  # a new machine
    mark(tmp_path, roots).worked()
    assert blamed(mark(tmp_path, roots)) == set()
    assert blamed(mark(tmp_path, roots, host="elsewhere")) == {*AWAY, *REFUSED, *UNUSABLE}
    # An update whose migration is not allowed must not replace one node after the other.
    monkeypatch.setattr("lyttle_ops.node.mark.migrate.head", lambda: "9999")
    newer = mark(tmp_path, roots)
    assert blamed(newer) == set(UNUSABLE)
    newer.worked()
    assert blamed(newer) == blamed(mark(tmp_path, roots)) == set()
    # Nor may a refused rollback be blamed on the version before, which the newer schema suits too.
    monkeypatch.undo()
    assert blamed(mark(tmp_path, roots)) == set()
    for head in ("9999", "99999"):
        monkeypatch.setattr("lyttle_ops.node.mark.migrate.head", lambda head=head: head)
        mark(tmp_path, roots).worked()
    monkeypatch.undo()
    assert blamed(mark(tmp_path, roots)) == set(UNUSABLE)  # two before: the schema has gone on
    # What worked with other URLs tells nothing about these.
    mark(tmp_path, roots, host="elsewhere").worked()
    monkeypatch.setattr("lyttle_ops.node.mark.migrate.head", lambda: "99999")
    assert blamed(mark(tmp_path, roots, host="elsewhere")) == set(UNUSABLE)

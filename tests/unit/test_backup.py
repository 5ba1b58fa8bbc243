"""The backup file: what goes in comes out, damage is seen, and nobody needs this project's code to read it."""

import base64
import importlib.util
import stat
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from lyttle_ops.certificates.encryption import Keyring

_MODULE = Path(__file__).parents[2] / "roles" / "stack" / "library" / "lyttle_backup.py"
KEY = bytes(range(32))
SECRETS = {"master_key": base64.b64encode(KEY).decode(), "admin_password": "a-password"}
DUMP = b"PGDMP" + bytes(1000)


@pytest.fixture(scope="module")
def backup() -> ModuleType:
    pytest.importorskip("ansible", reason="comes with the extra [control]")
    spec = importlib.util.spec_from_file_location("lyttle_backup", _MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packed(backup: ModuleType, tmp_path: Path) -> Path:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "database.dump").write_bytes(DUMP)
    path = tmp_path / "lyttle-ops-20260101T000000Z.tar"
    backup.pack(str(path), str(parts), SECRETS, {"created_at": "2026-01-01T00:00:00Z"})
    return path


def test_what_went_in_comes_out(backup: ModuleType, packed: Path, tmp_path: Path) -> None:
    about = backup.check(str(packed))
    assert about["secrets"] == sorted(SECRETS)
    assert about["database"] == len(DUMP)
    assert about["created_at"] == "2026-01-01T00:00:00Z"
    assert backup.read_secrets(str(packed)) == SECRETS
    assert Path(backup.unpack(str(packed), str(tmp_path))).read_bytes() == DUMP


def test_it_is_its_owners_alone_and_leaves_nothing_half_written(packed: Path) -> None:
    assert stat.S_IMODE(packed.stat().st_mode) == 0o600
    assert [path.name for path in packed.parent.iterdir() if path.is_file()] == [packed.name]


def test_the_master_key_is_named_as_nodes_name_it(backup: ModuleType, packed: Path) -> None:
    assert backup.check(str(packed))["key_id"] == Keyring(KEY).key_id
    assert SECRETS["master_key"] not in str(backup.check(str(packed)))


def test_tar_and_sha256sum_can_read_it(packed: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", packed, "-C", tmp_path], check=True)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / packed.stem, check=True)


@pytest.mark.parametrize("name", ["database.dump", "secrets/master_key", "about.json"])
def test_damage_is_seen_and_named(backup: ModuleType, packed: Path, name: str) -> None:
    with tarfile.open(packed) as archive:
        entry = archive.getmember(f"{packed.stem}/{name}")
    content = bytearray(packed.read_bytes())
    content[entry.offset_data + 3] ^= 1
    packed.write_bytes(content)
    with pytest.raises(backup.Unusable, match=name):
        backup.check(str(packed))


def test_a_file_that_was_cut_short_is_refused(backup: ModuleType, packed: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:3000])
    with pytest.raises(backup.Unusable):
        backup.check(str(packed))


def test_a_file_of_another_kind_is_refused(backup: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text("nothing of ours\n" * 100)
    with pytest.raises(backup.Unusable, match="no backup"):
        backup.check(str(path))


def test_a_bare_dump_counts_and_holds_no_secrets(backup: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "lyttle-20260102T030405Z.dump"
    path.write_bytes(DUMP)
    about = backup.check(str(path))
    assert about["created_at"] == "2026-01-02T03:04:05Z"
    assert about["key_id"] == ""
    with pytest.raises(backup.Unusable, match="no secrets"):
        backup.read_secrets(str(path))

"""The local cluster's files: secrets are private and kept, wiping removes nothing that is not its own."""

import stat
from pathlib import Path

import pytest

from lyttle_ops.local import credentials
from lyttle_ops.local.folders import Folders, FolderUnusable, run_folder


def test_secrets_are_private_and_survive(tmp_path: Path) -> None:
    first = credentials.ensure(tmp_path)
    password = first.admin_password_file.read_text()
    second = credentials.ensure(tmp_path)
    assert second.database_password == first.database_password
    assert second.admin_password_file.read_text() == password
    assert password.strip() in first.login_file.read_text()
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in tmp_path.iterdir())


def test_wipe_leaves_what_others_put_there(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "state")
    folders.state.mkdir()
    folders.secrets.mkdir()
    credentials.ensure(folders.secrets)
    (folders.state / "holiday.jpg").touch()
    folders.wipe()
    assert [file.name for file in folders.state.iterdir()] == ["holiday.jpg"]


def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderUnusable, match="--state-dir"):
        Folders(tmp_path / "file" / "state").create()


def test_the_run_folder_leaves_room_for_a_unix_sockets_name() -> None:
    longest = run_folder("127.255.255") / "n200" / "01234567" / "nginx-tls.sock"
    assert len(str(longest)) <= 107

"""The local cluster's files: secrets are private and kept, wiping removes nothing that is not its own."""

import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lyttle_ops.local import credentials, processes
from lyttle_ops.local.ca import make_tls
from lyttle_ops.local.folders import FolderForeign, Folders, FolderUnusable, run_folder


def test_secrets_are_private_and_survive(tmp_path: Path) -> None:
    first = credentials.ensure(tmp_path)
    password = first.admin_password_file.read_text()
    second = credentials.ensure(tmp_path)
    assert second.database_password == first.database_password
    assert second.admin_password_file.read_text() == password
    assert password.strip() in first.login_file.read_text()
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in tmp_path.iterdir())


@pytest.fixture
def state() -> Iterator[Path]:
    """A path for a state folder that PostgreSQL's user can reach, which pytest's tmp_path is not."""
    with tempfile.TemporaryDirectory(prefix="lyttle-folders-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "state"


def test_wipe_leaves_what_others_put_there_and_names_it(state: Path) -> None:
    folders = Folders(state)
    folders.create()
    credentials.ensure(folders.secrets)
    (state / "holiday.jpg").touch()
    assert folders.wipe() == ["holiday.jpg"]
    assert [file.name for file in state.iterdir()] == ["holiday.jpg"]


def test_wipe_removes_an_own_folder_wholly(state: Path) -> None:
    folders = Folders(state)
    state.mkdir()  # empty, so it may become a cluster's
    folders.create()
    folders.create()
    assert folders.wipe() == []
    assert not state.exists()


def test_a_folder_that_was_never_a_clusters_is_neither_filled_nor_wiped(tmp_path: Path) -> None:
    for name in ("logs", "ca", "nodes", "secrets", "postgres"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FolderForeign, match=r"nothing was put there; choose .* --state-dir"):
        Folders(tmp_path).create()
    with pytest.raises(FolderForeign, match="nothing was stopped or removed"):
        Folders(tmp_path).wipe()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cluster_from_before_the_marker_is_known_by_its_ca(state: Path) -> None:
    folders = Folders(state)
    make_tls(folders.ca, ["127.77.0.250"])
    with pytest.raises(FolderForeign):
        folders.wipe()
    folders.create()
    assert folders.is_ours()


def test_data_that_cannot_be_removed_is_not_called_removed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = Folders(state)
    folders.create()
    # Root may remove anything, so the failure has to be made.
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    with pytest.raises(FolderUnusable, match=r"postgres, ca, nodes, logs, secrets .* could not be removed"):
        folders.wipe()
    assert folders.is_ours()


def test_logs_and_nodes_are_closed_to_others_and_postgresqls_way_stays_open(state: Path) -> None:
    folders = Folders(state)
    folders.create()
    for name in ("logs", "nodes"):
        (state / name).chmod(0o755)  # as an earlier version left them
    folders.log("n1").touch(mode=0o644)
    folders.create()
    processes.open_log(folders.log("n1")).close()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (state, *state.iterdir(), folders.log("n1"))}
    assert modes[state / "logs"] == modes[state / "nodes"] == 0o750
    assert modes[folders.log("n1")] == 0o640
    assert modes[state] & modes[folders.postgres] & stat.S_IXOTH


def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderUnusable, match="--state-dir"):
        Folders(tmp_path / "file" / "state").create()


def test_the_run_folder_leaves_room_for_a_unix_sockets_name() -> None:
    longest = run_folder("127.255.255") / "n200" / "01234567" / "nginx-tls.sock"
    assert len(str(longest)) <= 107

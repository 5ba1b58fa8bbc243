"""The shared copy: what readers believe, what a late writer can do, and a folder that is away or hangs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.clock import SystemClock
from lyttle_ops.node import shared, shared_io
from lyttle_ops.node.desired import Desired, SnapshotFile
from lyttle_ops.node.shared import SharedCopy, SharedCopyUnusable, last_known
from tests.support.wait import until
from tests.unit.test_desired import certificate, proxy

OLD, NEW = bytes(32), bytes(range(32))
KEYRING = Keyring(NEW)
STATE = Desired(7, "thumbprint", [proxy(1, "a.test")], [certificate(1, "a.test")], KEYRING.key_id)


class Copy(SharedCopy):
    """A node's shared copy; `leads` is the term it leads, None for a follower."""

    def __init__(self, folder: Path, keyring: Keyring = KEYRING, leads: int | None = None) -> None:
        self.leads = leads
        super().__init__(folder, keyring, lambda: self.leads, SystemClock())

    def written(self, desired: Desired) -> None:
        """Publish, and wait until it is there."""
        self.publish(desired)
        until(lambda: self._written == (self.leads, desired), 10, "written")


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Callable[..., Copy]]:
    made: list[Copy] = []

    def make(**options: object) -> Copy:
        made.append(Copy(tmp_path, **options))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()
        each._thread.join(30)


def manifest(folder: Path, term: int) -> Path:
    return folder / f"{term:020d}" / "manifest.json"


def test_what_the_leader_writes_is_what_another_node_reads(copy: Callable[..., Copy], tmp_path: Path) -> None:
    leader = copy(leads=3)
    leader.written(STATE)
    assert Copy(tmp_path).load() == STATE
    note = until(leader.note, 10)
    assert note
    assert note["ok"]
    assert note["message"] == "revision 7 of term 3"


def test_nothing_readable_by_others_and_no_key_in_clear(copy: Callable[..., Copy], tmp_path: Path) -> None:
    copy(leads=3).written(STATE)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert (tmp_path / f"{3:020d}").stat().st_mode & 0o777 == 0o700
    assert not any("key 1" in path.read_text() for path in files)


def test_a_follower_writes_nothing(copy: Callable[..., Copy], tmp_path: Path) -> None:
    follower = copy()
    follower.publish(STATE)
    until(lambda: follower._next_look > 0, 10)
    assert list(tmp_path.iterdir()) == []


def test_a_term_that_begins_writes_the_state_although_it_did_not_change(
    copy: Callable[..., Copy], tmp_path: Path
) -> None:
    node = copy(leads=3)
    node.written(STATE)
    node.leads = 4
    until(manifest(tmp_path, 4).exists, 10)
    assert Copy(tmp_path).load() == STATE


def test_the_late_write_of_an_old_term_changes_nothing_that_is_read(copy: Callable[..., Copy], tmp_path: Path) -> None:
    old, new = copy(leads=3), copy(leads=4)
    old.written(STATE)
    new.written(replace(STATE, revision=8))
    old.written(replace(STATE, revision=900))
    assert Copy(tmp_path).load() == replace(STATE, revision=8)


def test_a_writer_that_froze_in_the_middle_and_thaws_changes_nothing_that_is_read(
    copy: Callable[..., Copy], tmp_path: Path
) -> None:
    old = copy(leads=3)
    old.written(STATE)
    request = {
        "do": "write", "folder": str(tmp_path), "term": 3, "name": "state-late.json", "content": "{}",
        "manifest": old._sign(replace(STATE, revision=900), 3, {"state-late.json": "0" * 64}),
        "keep": 0, "key_ids": list(KEYRING.key_ids),
    }  # fmt: skip
    late = subprocess.Popen([sys.executable, "-I", "-S", shared_io.__file__], stdin=subprocess.PIPE)
    late.send_signal(signal.SIGSTOP)
    copy(leads=4).written(replace(STATE, revision=8))
    assert late.stdin
    late.stdin.write(json.dumps(request).encode())
    late.stdin.close()
    late.send_signal(signal.SIGCONT)
    assert late.wait(10) == 0
    assert json.loads(manifest(tmp_path, 3).read_text())["revision"] == 900  # it did write
    assert Copy(tmp_path).load() == replace(STATE, revision=8)


def test_within_a_term_the_newest_revision_is_read_and_older_files_go(
    copy: Callable[..., Copy], tmp_path: Path
) -> None:
    leader = copy(leads=3)
    for revision in range(7, 12):
        leader.written(replace(STATE, revision=revision))
    assert Copy(tmp_path).load() == replace(STATE, revision=11)
    # The last state, the one before it (a reader may hold its manifest), and the manifest.
    assert len(list((tmp_path / f"{3:020d}").iterdir())) == 3


def test_old_terms_are_pruned_and_another_clusters_are_not(copy: Callable[..., Copy], tmp_path: Path) -> None:
    copy(leads=1, keyring=Keyring(OLD)).written(replace(STATE, key_id=None))
    node = copy(leads=2)
    for term in range(2, 9):
        node.leads = term
        node.written(replace(STATE, revision=term))
    left = sorted(int(path.name) for path in tmp_path.iterdir())
    assert left == [1, 5, 6, 7, 8]


@pytest.mark.parametrize("field", ["term", "revision", "files", "key_id", "hmac", "written_at"])
def test_a_manifest_changed_in_any_field_is_refused(copy: Callable[..., Copy], tmp_path: Path, field: str) -> None:
    copy(leads=3).written(STATE)
    path = manifest(tmp_path, 3)
    content = json.loads(path.read_text())
    changed = {"term": 4, "revision": 9, "files": {"x": "y"}, "key_id": "0" * 16, "hmac": "0", "written_at": "now"}
    path.write_text(json.dumps({**content, field: changed[field]}))
    with pytest.raises(SharedCopyUnusable):
        Copy(tmp_path).load()


def test_a_tampered_newer_term_is_passed_over_for_an_older_one(copy: Callable[..., Copy], tmp_path: Path) -> None:
    copy(leads=3).written(STATE)
    newer = copy(leads=4)
    newer.written(replace(STATE, revision=8))
    (state,) = (tmp_path / f"{4:020d}").glob("state-*")
    state.write_text(state.read_text().replace("backend", "attacker"))
    assert Copy(tmp_path).load() == STATE


def test_a_copy_moved_to_a_higher_term_is_refused(copy: Callable[..., Copy], tmp_path: Path) -> None:
    copy(leads=3).written(STATE)
    shutil.copytree(tmp_path / f"{3:020d}", tmp_path / f"{9:020d}")
    assert Copy(tmp_path).load() == STATE
    shutil.rmtree(tmp_path / f"{3:020d}")
    with pytest.raises(SharedCopyUnusable, match="belongs to term 3: it was moved"):
        Copy(tmp_path).load()


def test_another_master_key_is_refused_with_both_named(copy: Callable[..., Copy], tmp_path: Path) -> None:
    copy(leads=3).written(STATE)
    other = Keyring(OLD)
    with pytest.raises(SharedCopyUnusable, match=f"{KEYRING.key_id}.*{other.key_id}.*MASTER_KEY"):
        Copy(tmp_path, other).load()


def test_while_the_master_key_changes_nodes_with_either_key_read_it(copy: Callable[..., Copy], tmp_path: Path) -> None:
    """The leader has both keys and writes with the cluster's, here still the old one."""
    old = Keyring(OLD)
    state = replace(STATE, key_id=old.key_id)
    copy(leads=3, keyring=Keyring(NEW, OLD)).written(state)
    assert Copy(tmp_path, old).load() == state
    assert Copy(tmp_path, Keyring(NEW, OLD)).load() == state


def test_an_empty_folder_is_no_copy_and_a_missing_one_says_so(tmp_path: Path) -> None:
    assert Copy(tmp_path).load() is None
    with pytest.raises(SharedCopyUnusable, match="No such file or directory; is the shared folder mounted"):
        Copy(tmp_path / "none").load()


def test_without_a_folder_nothing_happens() -> None:
    none = SharedCopy(None, KEYRING, lambda: 1, SystemClock())
    none.start()
    none.publish(STATE)
    assert none.load() is None
    assert none.note() is None


def test_a_folder_that_hangs_is_given_up_and_its_child_is_gone(
    copy: Callable[..., Copy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "READ_DEADLINE", 2.0)
    manifest(tmp_path, 3).parent.mkdir()
    os.mkfifo(manifest(tmp_path, 3))  # whoever opens it waits for ever
    node = copy(leads=None)
    started = time.monotonic()
    with pytest.raises(SharedCopyUnusable, match=r"did not answer within|is slow"):
        node.load()
    assert time.monotonic() - started < 15
    started = time.monotonic()
    node.publish(STATE)
    assert time.monotonic() - started < 1.5
    note = until(node.note, 10)
    assert note
    assert not note["ok"]
    node.stop()
    node._thread.join(10)
    assert children() == []


def test_while_a_child_hangs_that_no_signal_ends_no_other_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for a hard mount ignores SIGKILL; here the signal is kept from it."""
    manifest(tmp_path, 3).parent.mkdir()
    os.mkfifo(manifest(tmp_path, 3))
    node = Copy(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shared, "READ_DEADLINE", 2.0)
        patch.setattr(subprocess.Popen, "kill", lambda self: None)
        with pytest.raises(SharedCopyUnusable, match="did not answer"):
            node.load()
    (hung,) = children()
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(SharedCopyUnusable, match="has hung since"):
            node.load()
        assert time.monotonic() - started < 1.5
    assert children() == [hung]
    hung.kill()
    manifest(tmp_path, 3).unlink()
    hung.wait(5)
    assert node.load() is None


def test_a_folder_that_comes_back_is_written_by_itself(
    copy: Callable[..., Copy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_PAUSES", (0.1,))
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    leader = copy(leads=3)
    leader.publish(STATE)
    note = until(leader.note, 10)
    assert note
    assert not note["ok"]
    away.rename(tmp_path)
    until(lambda: (leader.note() or {})["ok"], 10)
    assert Copy(tmp_path).load() == STATE


def test_a_leader_finds_out_that_its_copy_was_removed_and_writes_it_again(
    copy: Callable[..., Copy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LOOK", 0.2)
    monkeypatch.setattr(shared, "_PAUSES", (0.1,))
    copy(leads=3).written(STATE)
    shutil.rmtree(tmp_path / f"{3:020d}")
    until(manifest(tmp_path, 3).exists, 10)


def test_a_term_from_the_future_is_named_with_the_way_out(copy: Callable[..., Copy], tmp_path: Path) -> None:
    copy(leads=40).written(STATE)
    leader = copy(leads=3)
    leader.publish(replace(STATE, revision=2))
    note = until(leader.note, 10)
    assert note
    assert "restored from a backup" in note["message"]
    assert "Empty the folder" in note["message"]


def test_a_follower_that_sees_an_old_copy_for_long_says_so(
    copy: Callable[..., Copy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LOOK", 0.2)
    copy(leads=3).written(STATE)
    follower = copy()
    follower.publish(replace(STATE, revision=9))
    note = until(lambda: (n := follower.note()) and not n["ok"] and n, 10)
    assert note
    assert "revision 7, the cluster has had 9" in note["message"]


def test_of_two_kept_states_the_newer_one_counts(copy: Callable[..., Copy], tmp_path: Path) -> None:
    state_dir = tmp_path.with_name("state")
    state_dir.mkdir()
    own = SnapshotFile(state_dir, KEYRING)
    copy(leads=3).written(STATE)
    reader = Copy(tmp_path)
    assert [desired.revision for desired, _ in last_known(own, reader)] == [7]
    own.save(replace(STATE, revision=6))
    assert [desired.revision for desired, _ in last_known(own, reader)] == [6, 7]
    own.save(replace(STATE, revision=8))
    assert [desired.revision for desired, _ in last_known(own, reader)] == [8]
    (state_dir / "desired.json").write_text("{")
    assert [desired.revision for desired, _ in last_known(own, reader)] == [7]


def children() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [child for child in found if shared_io.__file__ in child.cmdline()]

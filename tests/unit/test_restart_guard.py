"""The restart guard: only unclean exits count, at most 5 in 5 minutes, across replaced containers."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from lyttle_ops.node.restart import MOST, RestartGuard, reset


class SteppingClock:
    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


def begin(folder: Path, clock: SteppingClock) -> RestartGuard:
    guard = RestartGuard(folder, uuid4(), clock)
    guard.begin()
    return guard


def die(guard: RestartGuard) -> None:
    """What kill -9 does: the kernel drops the file lock and nothing is tidied."""
    assert guard._lock_fd is not None
    os.close(guard._lock_fd)
    guard._lock_fd = None


def test_clean_exits_never_count(tmp_path: Path) -> None:
    clock = SteppingClock()
    for _ in range(20):
        guard = begin(tmp_path, clock)
        assert guard.count == 0
        guard.end()


def test_the_sixth_unclean_exit_within_five_minutes_is_one_too_many(tmp_path: Path) -> None:
    clock = SteppingClock()
    for exits in range(MOST + 1):
        guard = begin(tmp_path, clock)
        assert (guard.count, guard.exhausted) == (exits, False)
        die(guard)
        clock.at += timedelta(seconds=10)
    guard = begin(tmp_path, clock)
    assert (guard.count, guard.exhausted, guard.once_ready) == (6, True, False)
    assert (tmp_path / "restart.count").read_text().splitlines()[0] == "6"


def test_after_five_minutes_it_may_try_again(tmp_path: Path) -> None:
    clock = SteppingClock()
    for _ in range(MOST + 1):
        die(begin(tmp_path, clock))
    begin(tmp_path, clock).end()  # exhausted, refused, not counted
    clock.at += timedelta(minutes=5, seconds=1)
    assert begin(tmp_path, clock).count == 0


def test_whether_a_dead_run_had_been_ready_is_remembered(tmp_path: Path) -> None:
    clock = SteppingClock()
    guard = begin(tmp_path, clock)
    guard.was_ready()
    die(guard)
    die(begin(tmp_path, clock))
    assert begin(tmp_path, clock).once_ready


def test_a_live_predecessor_is_no_unclean_exit(tmp_path: Path) -> None:
    clock = SteppingClock()
    predecessor = begin(tmp_path, clock)
    assert begin(tmp_path, clock).count == 0
    predecessor.end()


def test_a_damaged_count_file_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "restart.count").write_text("what?\nnot a time\n")
    assert begin(tmp_path, SteppingClock()).count == 0


def test_what_a_shared_file_system_leaves_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "running").mkdir()
    (tmp_path / "running/.nfs000123").touch()
    (tmp_path / "running/folder").mkdir()
    assert begin(tmp_path, SteppingClock()).count == 0


def test_exits_dated_in_the_future_do_not_count(tmp_path: Path) -> None:
    clock = SteppingClock()
    for _ in range(MOST + 1):
        die(begin(tmp_path, clock))
    begin(tmp_path, clock).end()
    clock.at -= timedelta(hours=1)  # the clock was set back
    assert begin(tmp_path, clock).count == 0


def test_a_person_resets_it(tmp_path: Path) -> None:
    clock = SteppingClock()
    for _ in range(MOST + 1):
        die(begin(tmp_path, clock))
    reset(tmp_path)
    assert begin(tmp_path, clock).count == 0

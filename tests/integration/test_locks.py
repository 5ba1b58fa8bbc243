"""Locks against a real PostgreSQL: exclusion, loss, cleanliness in pg_locks."""

import threading
from collections.abc import Iterator

import pytest

from lyttle_ops.cluster.locks import Lock, LockLost, LockNotAcquired, Locks
from lyttle_ops.cluster.session import lock_key
from lyttle_ops.db import Database
from tests.support.wait import until


@pytest.fixture
def nodes(database_url: str) -> Iterator[list[Locks]]:
    databases = [Database(database_url, f"n{i}", size=0) for i in range(3)]
    locks = [Locks(database) for database in databases]
    yield locks
    for each in locks:
        each.close()


def advisory(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute(
            "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
    assert row
    return int(row["n"])


def end_sessions(database: Database) -> None:
    with database.connection() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE '%/locks'"
        )


def test_only_one_of_three_nodes_gets_the_lock(nodes: list[Locks]) -> None:
    taken = [locks.try_acquire_lock("cert:issue:a") for locks in nodes]
    assert [lock is not None for lock in taken] == [True, False, False]
    assert taken[0]
    assert taken[0].release()
    assert nodes[1].try_acquire_lock("cert:issue:a")


def test_two_threads_of_one_node_exclude_each_other_and_nothing_stacks(nodes: list[Locks], database: Database) -> None:
    first = nodes[0].try_acquire_lock("x")
    assert first
    assert nodes[0].try_acquire_lock("x") is None
    assert first.release()
    assert advisory(database) == 0


def test_keys_are_64_bits_of_sha256() -> None:
    # The original's 32-bit hash collided; first 8 bytes of SHA-256("a"), signed.
    assert lock_key("a") == int.from_bytes(bytes.fromhex("ca978112ca1bbdca"), "big", signed=True)


def test_not_acquired_is_an_exception_and_none_is_a_result(nodes: list[Locks]) -> None:
    with nodes[0].lock("x"), pytest.raises(LockNotAcquired):
        nodes[1].with_lock("x", lambda lock: None, timeout=0.2)
    assert nodes[1].with_lock("x", lambda lock: None) is None


def test_with_lock_releases_after_an_error_and_passes_it_on(nodes: list[Locks], database: Database) -> None:
    def body(lock: Lock) -> None:
        raise ValueError("from the body")

    with pytest.raises(ValueError, match="from the body"):
        nodes[0].with_lock("x", body)
    assert advisory(database) == 0


def test_with_lock_waits_for_its_turn(nodes: list[Locks]) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def body(lock: Lock) -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        lock.ensure_held()
        with guard:
            inside -= 1

    threads = [threading.Thread(target=lambda k=k: nodes[k % 3].with_lock("x", body)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1


def test_loss_of_the_session_is_noticed_while_held(nodes: list[Locks], database: Database) -> None:
    lock = nodes[0].try_acquire_lock("x")
    assert lock
    end_sessions(database)
    until(lambda: not lock.held, what="the holder notices")
    with pytest.raises(LockLost):
        lock.ensure_held()
    assert nodes[1].try_acquire_lock("x")
    assert lock.release() is False


def test_work_whose_lock_was_lost_does_not_end_as_if_nothing_happened(nodes: list[Locks], database: Database) -> None:
    def body(lock: Lock) -> str:
        end_sessions(database)
        until(lambda: not lock.held)
        return "done"

    with pytest.raises(LockLost):
        nodes[0].with_lock("x", body)


def test_an_idle_session_that_died_costs_nothing(nodes: list[Locks], database: Database) -> None:
    nodes[0].with_lock("x", lambda lock: None)
    end_sessions(database)
    until(lambda: nodes[0].with_lock("x", lambda lock: True), what="the next lock")


def test_a_wait_that_gives_up_leaves_nothing_in_pg_locks(nodes: list[Locks], database: Database) -> None:
    with nodes[0].lock("x"):
        with pytest.raises(LockNotAcquired):
            nodes[1].with_lock("x", lambda lock: None, timeout=0.1)
        assert advisory(database) == 1
    assert advisory(database) == 0

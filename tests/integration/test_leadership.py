"""Leadership against a real PostgreSQL: one leader, takeover, fencing, clean and unclean ends."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from uuid import UUID, uuid4

import pytest

from lyttle_ops.clock import SystemClock
from lyttle_ops.cluster.events import Events
from lyttle_ops.cluster.leadership import CHANNEL, Leadership, NotLeader, State
from lyttle_ops.cluster.members import Member, NodeNameTaken, cluster_leader, cluster_stats, list_nodes
from lyttle_ops.db import Database, DatabaseError
from tests.support.wait import until


class FrozenClock(SystemClock):
    """A clock that can jump, as a frozen process sees it when it thaws."""

    offset = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.offset


class Node:
    """What of a node takes part in leadership."""

    def __init__(self, url: str, name: str) -> None:
        self.id: UUID = uuid4()
        self.name = name
        self.database = Database(url, f"lyttle/{str(self.id)[:8]}", size=2)
        self.member = Member(self.database, self.id, name, f"machine-{name}")
        self.clock = FrozenClock()
        self.serves = True
        self.started = False
        self.terms: list[int] = []
        self.lost = threading.Event()
        self.leadership = Leadership(
            self.database,
            self.id,
            name,
            self.clock,
            eligible=lambda: self.serves,
            on_elected=self.terms.append,
            on_lost=self.lost.set,
        )
        self.events = Events(self.database, {CHANNEL: self._invited})
        self.member.heartbeat()

    def _invited(self, payload: str) -> None:
        if payload == str(self.id):
            self.leadership.stand()

    def start(self) -> "Node":
        self.started = True
        self.events.start()
        self.leadership.start()
        return self

    def stop(self) -> None:
        self.leadership.stop()
        if self.started:
            self.events.stop()
        self.database.close()


@pytest.fixture
def node(database_url: str) -> Iterator[Callable[[str], Node]]:
    nodes: list[Node] = []

    def make(name: str) -> Node:
        nodes.append(Node(database_url, name))
        return nodes[-1]

    yield make
    for each in nodes:
        each.stop()


def term_in(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute("SELECT term FROM leadership").fetchone()
    assert row
    return int(row["term"])


def end_leader_session(database: Database, name: str) -> None:
    with database.connection() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE %s",
            (f"lyttle/%/lead/{name}",),
        )


def test_one_leads_one_stands_by_and_the_rest_wait_for_an_invitation(
    node: Callable[[str], Node], database: Database
) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    second = node("b").start()
    until(lambda: second.leadership.state is State.STANDBY)
    third = node("c").start()
    with database.connection() as connection:
        who = cluster_leader(connection)
        assert (who["leader"]["node"], who["standby"]["node"], who["term"]) == ("a", "b", 1)
        shown = {n["name"]: (n["is_leader"], n["is_standby"], n["status"]) for n in list_nodes(connection)}
    assert shown == {"a": (True, False, "active"), "b": (False, True, "active"), "c": (False, False, "active")}
    assert third.leadership.state is State.FOLLOWER


def test_the_standby_takes_over_when_the_leaders_session_is_ended(
    node: Callable[[str], Node], database: Database
) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    second = node("b").start()
    until(lambda: second.leadership.state is State.STANDBY)
    end_leader_session(database, "a")
    until(second.leadership.is_leader)
    # The window in which both believe must be empty: the old one saw EOF before the new one promoted.
    assert until(first.lost.is_set)
    assert not first.leadership.is_leader()
    assert term_in(database) == 2
    # The old leader stands again, invited by the new one or by its own retry.
    until(lambda: first.leadership.state is State.STANDBY, timeout=15)


def test_a_vacant_standby_place_is_filled_by_invitation(node: Callable[[str], Node], database: Database) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    second = node("b").start()
    until(lambda: second.leadership.state is State.STANDBY)
    third = node("c").start()
    second.leadership.stop()
    until(lambda: third.leadership.state is State.STANDBY, timeout=10)
    first.leadership.stop()
    until(third.leadership.is_leader, timeout=4)


def test_a_clean_stop_releases_at_once_and_lets_the_successor_act_at_once(node: Callable[[str], Node]) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    second = node("b").start()
    until(lambda: second.leadership.state is State.STANDBY)
    first.leadership.stop()
    until(second.leadership.is_leader, timeout=4)
    assert second.leadership.settled


def test_after_an_unclean_end_outside_effects_wait_one_trust_window(
    node: Callable[[str], Node], database: Database
) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    second = node("b").start()
    until(lambda: second.leadership.state is State.STANDBY)
    end_leader_session(database, "a")
    until(second.leadership.is_leader)
    assert not second.leadership.settled
    until(lambda: second.leadership.settled, timeout=6)


def test_a_thawed_leader_neither_believes_nor_writes(node: Callable[[str], Node], database: Database) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    with first.leadership.transaction() as connection:
        connection.execute("SELECT 1")
    first.clock.offset = 30.0
    # Until the next ping succeeds it must not trust itself, whatever PostgreSQL still holds for it.
    assert not first.leadership.is_leader()
    with pytest.raises(NotLeader), first.leadership.transaction():
        pass


def test_a_write_of_an_old_term_is_refused_by_postgresql(node: Callable[[str], Node], database: Database) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    with database.connection() as connection:  # a successor's promotion, unseen by the first
        connection.execute("UPDATE leadership SET term = term + 1, instance_id = gen_random_uuid()")
    with pytest.raises(NotLeader), first.leadership.transaction() as fenced:
        fenced.execute("UPDATE cluster_state SET revision = 999")
    with database.connection() as connection:
        row = connection.execute("SELECT revision FROM cluster_state").fetchone()
    assert row
    assert row["revision"] == 0


def test_a_leader_whose_nginx_cannot_serve_resigns_and_stands_again_when_it_can(node: Callable[[str], Node]) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    second = node("b").start()
    until(lambda: second.leadership.state is State.STANDBY)
    first.serves = False
    first.leadership.reconsider()
    until(second.leadership.is_leader, timeout=4)
    assert first.leadership.state is State.FOLLOWER
    first.serves = True
    first.leadership.reconsider()
    until(lambda: first.leadership.state is State.STANDBY)


def test_release_leader_lock_hands_over_to_the_standby(node: Callable[[str], Node]) -> None:
    first = node("a").start()
    until(first.leadership.is_leader)
    second = node("b").start()
    until(lambda: second.leadership.state is State.STANDBY)
    second.leadership.release_leader_lock()  # of a term it does not have: nothing, now or later
    first.leadership.release_leader_lock()
    until(second.leadership.is_leader, timeout=4)
    until(lambda: second.terms == [2])
    until(lambda: first.leadership.state is State.STANDBY)
    assert second.leadership.is_leader()


def test_no_two_nodes_act_at_once_while_sessions_are_ended_again_and_again(
    node: Callable[[str], Node], database: Database
) -> None:
    """Where PostgreSQL can fence, an old term's write is refused; where it cannot, `settled` keeps the two apart."""
    with database.connection() as connection:
        connection.execute("CREATE TABLE acts (id bigserial, term bigint)")
    nodes = [node("a").start(), node("b").start()]
    until(lambda: {n.leadership.state for n in nodes} == {State.LEADER, State.STANDBY})
    both: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.0002):
            if all(n.leadership.settled for n in nodes):
                both.append(time.monotonic())

    def act(leadership: Leadership) -> None:
        while not done.wait(0.001):
            with suppress(NotLeader, DatabaseError), leadership.transaction() as connection:
                connection.execute("INSERT INTO acts (term) VALUES (%s)", (leadership.term or -1,))

    threads = [threading.Thread(target=watch)]
    threads += [threading.Thread(target=act, args=(n.leadership,)) for n in nodes]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            # The one that leads by the table's word: an ended one may still believe for a moment.
            before = term_in(database)
            leader = until(lambda before=before: next((n for n in nodes if n.leadership.term == before), None))
            end_leader_session(database, leader.name)
            until(lambda before=before: term_in(database) > before, timeout=15)
            until(lambda: {n.leadership.state for n in nodes} == {State.LEADER, State.STANDBY}, timeout=15)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert both == []
    with database.connection() as connection:
        terms = [row["term"] for row in connection.execute("SELECT term FROM acts WHERE term > 0 ORDER BY id")]
    assert terms == sorted(terms)
    assert len(set(terms)) > 2


def test_the_same_name_from_another_machine_is_refused_and_the_first_not_disturbed(
    node: Callable[[str], Node], database: Database
) -> None:
    first = node("a")
    other = Member(database, uuid4(), "a", "another-machine")
    with pytest.raises(NodeNameTaken, match="NODE_NAME"):
        other.heartbeat()
    first.member.heartbeat()
    successor = Member(database, uuid4(), "a", "machine-a")
    successor.heartbeat()
    with database.connection() as connection:
        nodes = list_nodes(connection)
        assert [(n["name"], n["instances"]) for n in nodes] == [("a", 2)]
        assert cluster_stats(connection)["nodes"] == {"total": 1, "active": 1, "stale": 0, "inactive": 0}
    # A machine that is gone for two minutes has given its name up.
    with database.connection() as connection:
        connection.execute("UPDATE instances SET last_heartbeat_at = now() - interval '3 minutes'")
    other.heartbeat()


def test_a_clean_leave_is_inactive_and_silence_is_stale(node: Callable[[str], Node], database: Database) -> None:
    node("a").member.leave()
    node("b")
    with database.connection() as connection:
        connection.execute(
            "UPDATE instances SET last_heartbeat_at = now() - interval '121 seconds' WHERE node_name = 'b'"
        )
        assert {n["name"]: n["status"] for n in list_nodes(connection)} == {"a": "inactive", "b": "stale"}

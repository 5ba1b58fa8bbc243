"""The shared copy between real nodes: who writes it, who starts from it, and a folder that hangs."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.integration.test_node import NodeProcess, add_proxy, node
from tests.support.wait import until

__all__ = ["node"]  # the fixture

AWAY = "postgresql://nobody:nothing@127.0.0.1:1/none"  # nothing listens there
DOMAIN = "a.example.test"


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "shared"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def manifests(shared: Path) -> dict[int, dict[str, Any]]:
    return {int(path.parent.name): json.loads(path.read_text()) for path in shared.glob("*/manifest.json")}


def newest(shared: Path) -> tuple[int, int]:
    """(term, revision) of what readers take."""
    found = manifests(shared)
    return (max(found), found[max(found)]["revision"]) if found else (0, 0)


def note(one: NodeProcess) -> dict[str, Any]:
    return dict(one.status()["notes"].get("shared_copy", {}))


def served(one: NodeProcess, domain: str) -> int:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"http://{one.http}/", headers={"Host": domain}, timeout=5).status_code


def test_a_node_with_neither_postgresql_nor_a_state_of_its_own_starts_from_it(
    node: Callable[..., NodeProcess], database_url: str, shared: Path
) -> None:
    add_proxy(database_url, DOMAIN, "http://127.0.0.1:9")
    leader = node(SHARED_DIR=str(shared)).start()
    until(leader.ready, timeout=30)
    until(lambda: newest(shared)[1] >= 1, 30, "the leader writes it")
    other = node(AWAY, name="n2", SHARED_DIR=str(shared)).start()
    # 502: the entry is served, and nothing listens at its target.
    until(lambda: served(other, DOMAIN) == 502, 30, "it is served")
    assert f"revision {newest(shared)[1]} from the shared copy in {shared}" in other.text()
    until(lambda: other.status()["revision"] == newest(shared)[1], 30, "its status, written every 2 s, says so")
    until(lambda: other.get("/health/ready").status_code == 503, 30, "it says that PostgreSQL is away")
    # Nothing is known of its DATABASE_URL on this machine, so a server that cannot be reached counts as away.
    until(lambda: other.status()["state"] == "ready", 30)


def test_without_both_it_ends_with_the_reason_and_a_wrong_key_is_named(
    node: Callable[..., NodeProcess], database_url: str, shared: Path
) -> None:
    leader = node(SHARED_DIR=str(shared)).start()
    until(lambda: manifests(shared), 30, "the leader writes it")
    leader.stop()
    other = node(AWAY, name="n2", SHARED_DIR=str(shared), MASTER_KEY="A" * 43 + "=").start()
    until(lambda: "was written with master key" in other.text(), 30)
    assert "give every node the cluster's MASTER_KEY" in other.text()


def test_of_its_own_state_and_the_shared_one_a_node_takes_the_newer(
    node: Callable[..., NodeProcess], database_url: str, shared: Path
) -> None:
    leader = node(SHARED_DIR=str(shared)).start()
    second = node(name="n2", SHARED_DIR=str(shared)).start()
    until(lambda: leader.ready() and second.ready(), timeout=40)
    until((second.folder / "state/desired.json").exists, 10)
    second.stop()
    add_proxy(database_url, DOMAIN, "http://127.0.0.1:9")
    until(lambda: newest(shared)[1] == 1, 30)
    second.environment["DATABASE_URL"] = AWAY
    second.start()
    until(lambda: served(second, DOMAIN) == 502, 30, "it is served")
    assert "revision 0 from" in second.text()  # its own first, which is there at once


def test_a_leader_that_froze_and_thaws_leaves_the_newer_terms_copy_alone(
    node: Callable[..., NodeProcess], database_url: str, shared: Path
) -> None:
    both = [node(name=name, SHARED_DIR=str(shared)).start() for name in ("n1", "n2")]
    until(lambda: all(one.ready() for one in both), timeout=40)
    until(lambda: newest(shared)[0] >= 1, 30)
    until(lambda: all(any(one.status()[role] for one in both) for role in ("leader", "standby")), 30)
    (old,) = [one for one in both if one.status()["leader"]]
    (new,) = [one for one in both if one is not old]
    first = newest(shared)[0]
    assert old.process
    old.process.send_signal(signal.SIGSTOP)
    try:
        add_proxy(database_url, DOMAIN, "http://127.0.0.1:9")
        until(lambda: newest(shared) == (first + 1, 1), 40, "the new leader writes its term")
    finally:
        old.process.send_signal(signal.SIGCONT)
    until(lambda: old.status()["revision"] == 1, 30, "the thawed one has caught up")
    until(lambda: note(old).get("ok"), 30)
    assert newest(shared) == (first + 1, 1)
    assert manifests(shared)[first]["revision"] == 0
    assert new.status()["leader"]


def test_a_folder_that_hangs_or_is_away_keeps_no_node_from_serving(
    node: Callable[..., NodeProcess], database_url: str, shared: Path
) -> None:
    (shared / f"{7:020d}").mkdir()
    os.mkfifo(shared / f"{7:020d}" / "manifest.json")  # whoever opens it waits for ever
    one = node(SHARED_DIR=str(shared)).start()
    until(one.ready, timeout=30)
    add_proxy(database_url, DOMAIN, "http://127.0.0.1:9")
    until(lambda: served(one, DOMAIN) == 502, 10)
    until(lambda: note(one).get("ok") is False, 60, "it says what is wrong")
    assert "did not answer within" in note(one)["message"]
    ready = one.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["notes"]["shared_copy"]["ok"] is False
    assert f'lyttle_shared_copy_ok{{folder="{shared}"}} 0.0' in one.get("/metrics").text
    assert one.process
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 0

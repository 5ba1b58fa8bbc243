"""`lyttle-ops local` with three nodes that run: looked at, a node killed and started again."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests

from lyttle_ops.local import processes
from tests.support import wait
from tests.support.local import LocalCommand, local_command


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCommand]:
    """Three nodes that are ready, on addresses of their own; stopped and removed after the module's tests."""
    with local_command() as command:
        command.do("up", "--detach")
        yield command


def test_status_says_where_everything_is(cluster: LocalCommand) -> None:
    status = cluster.status()
    assert list(status) == ["database", "ca", "admin", "upstream", "nodes"]
    with psycopg.connect(status["database"]["dsn"]) as connection:
        assert connection.execute("SELECT count(*) FROM nodes").fetchone() == (3,)
    assert "BEGIN CERTIFICATE" in Path(status["ca"]["root"]).read_text()
    assert requests.get(status["upstream"], timeout=5).json()["path"] == "/"
    assert [node["name"] for node in status["nodes"]] == ["n1", "n2", "n3"]
    for node in status["nodes"]:
        assert list(node) == ["name", "api", "http", "https", "pid", "leader", "ready"]
        assert node["ready"]
        assert b"lyttle_ops.cli" in Path(f"/proc/{node['pid']}/cmdline").read_bytes()
        assert requests.get(f"{node['api']}/health/ready", timeout=5).status_code == 200
    wait.until(cluster.leader, 45, "a leader", every=0.5)
    assert cluster.token()


def test_a_second_up_is_told_how_to_look_and_how_to_stop(cluster: LocalCommand) -> None:
    refused = cluster.run("up")
    assert refused.returncode == 1
    assert "already running" in refused.stderr
    assert "local status" in refused.stderr
    assert "local down" in refused.stderr
    assert all(node["ready"] for node in cluster.status()["nodes"])


def test_the_status_file_and_secrets_are_private(cluster: LocalCommand) -> None:
    for file in [cluster.state_folder / "cluster.json", *(cluster.state_folder / "secrets").iterdir()]:
        assert file.stat().st_mode & 0o077 == 0, file


def test_logs_and_the_nodes_folders_are_closed_to_others(cluster: LocalCommand) -> None:
    for name in ("logs", "nodes"):
        folder = cluster.state_folder / name
        for path in (folder, *folder.iterdir()):
            assert path.stat().st_mode & 0o027 == 0, path


def test_a_killed_node_is_gone_at_once_and_a_started_one_is_ready(cluster: LocalCommand) -> None:
    before = cluster.node("n3")
    family = processes.family(cluster.processes()["n3"])
    assert len(family) >= 3  # supervisor, NGINX, API
    cluster.do("kill", "n3")
    assert not any(member.is_alive() for member in family)
    dead = cluster.node("n3")
    assert (dead["pid"], dead["leader"], dead["ready"]) == (None, False, False)
    assert "does not run" in cluster.run("kill", "n3").stderr

    (cluster.state_folder / "nodes" / "n3" / "restart.count").write_text("anything")
    cluster.do("start", "n3")
    after = cluster.node("n3")
    assert after["ready"]
    assert after["pid"] != before["pid"]
    assert "already runs" in cluster.run("start", "n3").stderr


def test_a_node_starts_over_what_its_killed_supervisor_left(cluster: LocalCommand) -> None:
    node = cluster.node("n2")
    os.kill(node["pid"], signal.SIGKILL)
    wait.until(lambda: cluster.node("n2")["pid"] is None)
    cluster.do("start", "n2")
    assert cluster.node("n2")["ready"]

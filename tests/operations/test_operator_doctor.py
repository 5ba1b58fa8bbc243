"""`lyttle-ops doctor` with the real role: this machine as a bare host, and hosts that are away."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from lyttle_ops.local.postgres import PostgresServer
from tests.support import loopback
from tests.support.operator import LOCAL, ROOT, Checkout, checkout


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    made = checkout(tmp_path)
    for name in ("playbooks", "roles"):
        (made.folder / name).rmdir()
        (made.folder / name).symlink_to(ROOT / name)
    return made


def inventory(work: Checkout, text: str) -> None:
    (work.folder / "inventory.ini").write_text(text + "\n[swarm:children]\nmanagers\nworkers\n")


def by_check(findings: list[dict[str, Any]], host: str) -> dict[str, dict[str, Any]]:
    return {each["check"]: each for each in findings if each["host"] == host}


def test_hosts_that_are_away_or_bare_are_findings_with_a_remedy(work: Checkout, postgres: PostgresServer) -> None:
    host = loopback.address()
    taken = socket.create_server((host, 0))
    port = taken.getsockname()[1]
    database = postgres.url("postgres")
    inventory(
        work,
        f"""[managers]
n1 {LOCAL} swarm_address={host} stack_database_url={database}
n2 ansible_host=127.0.0.1 ansible_port=1
[workers]
n3 {LOCAL} swarm_address={host} swarm_edge=false ansible_python_interpreter={sys.executable}
[all:vars]
doctor_ports=[{port}]
docker_host=unix:///nonexistent
doctor_clock_seconds=60
""",
    )
    with taken:
        done = work.run("doctor", "--json", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert all(set(each) == {"host", "check", "ok", "level", "message", "remedy"} for each in findings)
    assert all(bool(each["remedy"]) != each["ok"] for each in findings)
    control, n1, n2, n3 = (by_check(findings, name) for name in ("control", "n1", "n2", "n3"))
    assert control["ansible"]["ok"]
    assert "2 managers" in control["inventory"]["message"]
    assert n1["ssh"]["ok"]
    assert n1["docker"]["level"] == "error"
    assert f"port {port} is taken by python" in n1["ports"]["message"]
    assert "offers no TLS" in n1["database"]["message"]
    assert list(n2) == ["ssh"]
    assert "Connection refused" in n2["ssh"]["message"]
    assert "`ssh -p 1 127.0.0.1`" in n2["ssh"]["remedy"]
    assert "ports" not in n3  # it serves nobody
    cluster = by_check(findings, "cluster")
    assert cluster["clock"]["ok"]


def test_an_inventory_that_cannot_be_used_is_told_before_any_host_is_asked(work: Checkout) -> None:
    (work.folder / "inventory.ini").write_text("[managers\n")
    done = work.run("doctor")
    assert done.returncode == 1
    assert "error    control: inventory: Failed to parse inventory" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 error, 0 warnings"

    inventory(work, "[managers]\n[workers]\nn1\n[postgres]\nn1\nn2\n[nfs]\n")
    (work.folder / "inventory.ini").write_text("[managers]\n[workers]\nn1\n[postgres]\nn1\nn2\n")
    done = work.run("doctor", "--json")
    assert done.returncode == 1
    messages = [each["message"] for each in json.loads(done.stdout)["findings"] if not each["ok"]]
    assert messages == [
        "the group managers has no host",
        "the group swarm is not managers and workers together",
        "the group postgres has 2 hosts",
    ]

"""While a manager does not answer, no second Swarm is started beside its own, and no secrets beside those it keeps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.operator import LOCAL, ROOT, Checkout, checkout

DEAD = "ansible_host=127.0.0.1 ansible_port=1"


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, [])


def run(work: Checkout, role: str, files: list[str], hosts: dict[str, str]) -> tuple[int, str]:
    """Exit code and what was said. `hosts`: name → a Swarm's state (its Docker says so), or dead."""
    lines = []
    for name, state in hosts.items():
        folder = work.folder / name
        folder.mkdir(exist_ok=True)
        swarm = {
            "LocalNodeState": state,
            "NodeID": name,
            "ControlAvailable": state == "active",
            "Cluster": {"ID": "c1"},
        }
        said = json.dumps({"name": name, "swarm": {**swarm, "NodeAddr": "192.0.2.1", "RemoteManagers": []}})
        (folder / "docker").write_text(f"#!/bin/sh\necho '{said}'\n")
        (folder / "docker").chmod(0o755)
        lines.append(f"{name} {DEAD if state == 'dead' else LOCAL} folder={folder}")
    text = "\n".join(["[managers]", *lines, "", "[swarm:children]", "managers", ""])
    (work.folder / "inventory.ini").write_text(text)
    play = {
        "hosts": "swarm",
        "gather_facts": False,
        "environment": {"PATH": "{{ folder }}:/usr/bin:/bin"},
        "vars": {"swarm_address": "192.0.2.1"},
        "tasks": [{"ansible.builtin.import_role": {"name": role, "tasks_from": file}} for file in files],
    }
    (work.folder / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "inventory.ini",
            "-e",
            "stack_secrets_folder={{folder}}/secrets",
            "play.yml",
        ],
        cwd=work.folder,
        env=work.environment(ANSIBLE_ROLES_PATH=str(ROOT / "roles")),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_second_swarm_is_refused(work: Checkout) -> None:
    files = ["read.yml", "preflight.yml"]
    _, said = run(work, "swarm", files, {"n1": "inactive", "n2": "dead", "n3": "inactive"})
    assert "n2 may be: see to it that they answer" in said
    _, said = run(work, "swarm", files, {"n1": "inactive", "n2": "dead", "n3": "active"})
    assert "may be: see to it" not in said  # n1 joins n3
    code, said = run(work, "swarm", files, {"n1": "inactive", "n2": "inactive"})
    assert code == 0, said


def test_other_secrets_are_refused(work: Checkout) -> None:
    kept = work.folder / "n1" / "secrets" / "master_key"
    _, said = run(work, "stack", ["secrets.yml"], {"n1": "active", "n2": "dead"})
    assert "n2 may: see to it that they answer" in said
    assert not kept.exists()
    code, said = run(work, "stack", ["secrets.yml"], {"n1": "active", "n2": "active"})
    assert code == 0, said
    made = kept.read_text()
    _, said = run(work, "stack", ["secrets.yml"], {"n1": "active", "n2": "dead"})  # all are known
    assert "may: see to it" not in said
    assert "failed=1" not in said
    assert kept.read_text() == made

"""A change of daemon.json restarts Docker on one host after the other, and on none after one that stays away."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.operator import LOCAL, ROOT, Checkout, checkout

# What `docker ps` and `docker info` say, and what systemctl does to that.
HOSTS = {
    "well": ("", ""),
    "does-not-start": ("exit 1", ""),
    "unhealthy": ("echo > {folder}/healthy", ""),
    "no-leader": ("echo 'active truerpc error: The swarm does not have a leader' > {folder}/swarm", ""),
    "was-dead": ("echo active true > {folder}/swarm", "rm {folder}/swarm"),
}


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, [])


def program(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def restart(work: Checkout, **kinds: str) -> tuple[int, str, str]:
    """Exit code, the hosts whose Docker was restarted in order, what was said. `kinds`: name → a key of HOSTS."""
    log, lines = work.folder / "restarted", []
    for name, kind in kinds.items():
        folder = work.folder / name
        folder.mkdir()
        (folder / "healthy").write_text("one\ntwo\n")
        (folder / "swarm").write_text("active true\n")
        effect, before = (text.format(folder=folder) for text in HOSTS[kind])
        subprocess.run(before or "true", shell=True, check=True)
        program(folder / "docker", f"case $1 in ps) grep . {folder}/healthy;; info) cat {folder}/swarm;; esac")
        program(folder / "systemctl", f"echo {name} >> {log}", effect or "true")
        lines.append(f"{name} {LOCAL} programs={folder}")
    (work.folder / "inventory.ini").write_text("\n".join([*lines, ""]))
    play = {
        "hosts": "all",
        "gather_facts": False,
        "environment": {"PATH": "{{ programs }}:/usr/bin:/bin"},
        "vars": {"docker_restart_seconds": 2, "docker_install": {"changed": False}},
        "tasks": [{"ansible.builtin.command": "true", "notify": "Restart Docker", "tags": ["docker"]}],
        "handlers": [{"ansible.builtin.import_tasks": str(ROOT / "roles/docker/handlers/main.yml")}],
    }
    (work.folder / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "inventory.ini",
            "--tags",
            "docker",
            "play.yml",
        ],
        cwd=work.folder,
        env=work.environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return done.returncode, log.read_text(), done.stdout + done.stderr


def test_one_host_after_the_other_in_the_inventorys_order(work: Checkout) -> None:
    code, restarted, said = restart(work, n2="well", n1="was-dead", n3="well")
    assert (code, restarted.split()) == (0, ["n2", "n1", "n3"]), said


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("does-not-start", "Docker does not start"),
        ("unhealthy", "0 of 2 containers are healthy"),
        ("no-leader", "does not have a leader"),
    ],
)
def test_none_after_a_host_that_does_not_come_back(work: Checkout, kind: str, reason: str) -> None:
    code, restarted, said = restart(work, n1="well", n2=kind, n3="well", n4="well")
    assert code != 0
    assert restarted.split() == ["n1", "n2"], said
    assert reason in said

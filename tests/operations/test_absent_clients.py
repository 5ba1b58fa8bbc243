"""Who may connect to PostgreSQL and mount the shared folder: a node that is away keeps the address that it had."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.operator import LOCAL, ROOT, Checkout, checkout

FILES = {
    "postgres": ("pg_hba.conf.j2", "postgres_hba", {"postgres_own_networks": [], "postgres_client_networks": []}),
    "nfs": ("lyttle-ops.exports.j2", "nfs_exports", {"nfs_export": "/srv/lyttle-ops"}),
}


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, ["n1", "n2", "n3", "n4"])


def write(work: Checkout, role: str, seen: dict[str, str]) -> str:
    """The role's file, from the one that is there already. `seen`: hosts of this run, with their default address."""
    template, present, variables = FILES[role]
    file = work.folder / role
    path = ROOT / "roles" / role
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.slurp": {"src": str(file)}, "register": present, "failed_when": False},
        {"ansible.builtin.template": {"src": str(path / "templates" / template), "dest": str(file)}},
    ]
    facts = {"default_ipv4": {"address": "{{ seen[inventory_hostname] }}"}}
    plays = [
        {"hosts": list(seen), "tasks": [{"ansible.builtin.set_fact": {**facts, "cacheable": True}}]},
        {
            "hosts": "n1",
            "vars": {f"{role}_clients": ["n1", "n2", "n3", "n4"], **variables},
            "vars_files": [str(path / "vars/main.yml")],
            "tasks": tasks,
        },
    ]
    play = [{"gather_facts": False, **each} for each in plays]
    (work.folder / "play.yml").write_text(yaml.safe_dump(play, sort_keys=False))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "inventory.ini",
            "-e",
            yaml.safe_dump({"seen": seen}, default_flow_style=True),
            "play.yml",
        ],
        cwd=work.folder,
        env=work.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return file.read_text()


@pytest.mark.parametrize("role", list(FILES))
def test_a_host_that_is_away_keeps_its_address_and_one_never_seen_has_none(work: Checkout, role: str) -> None:
    hosts = (work.folder / "inventory.ini").read_text()
    (work.folder / "inventory.ini").write_text(hosts.replace(f"n4 {LOCAL}", f"n4 {LOCAL} swarm_address=192.0.2.14"))
    first = write(work, role, {"n1": "192.0.2.11", "n2": "192.0.2.12"})
    assert [f"192.0.2.1{number}" in first for number in (1, 2, 3, 4)] == [True, True, False, True]
    assert write(work, role, {"n1": "192.0.2.11"}) == first
    moved = write(work, role, {"n1": "192.0.2.21", "n3": "192.0.2.13"})
    assert [address in moved for address in ("192.0.2.11", "192.0.2.21", "192.0.2.12", "192.0.2.13")] == [
        False,
        True,
        True,
        True,
    ]

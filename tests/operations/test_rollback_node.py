"""What -e rollback_… names is checked before anything is changed."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.operator import ROOT, Checkout, checkout

CHOICE = ("Choose the node that stays", "Assert that a node can stay")


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, ["n1", "n2", "n3"])


def choose(work: Checkout, nodes: dict[str, tuple[str, bool]], **options: str) -> str:
    """The node that stays, or what is said instead. `nodes`: inventory host → state and whether it leads."""
    tasks = yaml.safe_load((ROOT / "roles/stack/tasks/rollback.yml").read_text())
    seen = {
        host: {"instance": {"status": {"node": f"web-{host}", "state": state, "leader": leader}}}
        for host, (state, leader) in nodes.items()
    }
    instance = "{{ seen[inventory_hostname] | default({'unreachable': true}) }}"
    plays = [
        {"hosts": "all", "tasks": [{"ansible.builtin.set_fact": {"stack_instance": instance}}], "vars": {"seen": seen}},
        {
            "hosts": "n1",
            "vars": {"stack_kind": "scale-one"},
            "tasks": [
                *[task for task in tasks if task["name"] in CHOICE],
                {"ansible.builtin.debug": {"msg": "it is {{ stack_stays }}."}},
            ],
        },
    ]
    (work.folder / "play.yml").write_text(yaml.safe_dump([{"gather_facts": False, **play} for play in plays]))
    inventory = work.folder / "inventory.ini"
    inventory.write_text(inventory.read_text() + "[swarm:children]\nmanagers\n")
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "inventory.ini",
            "-e",
            yaml.safe_dump(options, default_flow_style=True),
            "play.yml",
        ],
        cwd=work.folder,
        env=work.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_leader_stays_while_it_is_ready_else_another_one_that_is(work: Checkout) -> None:
    assert "it is web-n2." in choose(work, {"n1": ("ready", False), "n2": ("ready", True)})
    assert "it is web-n1." in choose(work, {"n1": ("ready", False), "n2": ("failed", True)})
    assert "No node is ready that could stay" in choose(work, {"n2": ("failed", True)})


def test_a_node_that_is_named_has_to_be_one_that_serves(work: Checkout) -> None:
    nodes = {"n1": ("ready", True), "n2": ("ready", False), "n3": ("failed", False)}
    assert "it is web-n2." in choose(work, nodes, rollback_node="web-n2")
    for wrong in ("n2", "web-n3", "web-2"):
        told = choose(work, nodes, rollback_node=wrong)
        assert f"rollback_node is {wrong}; the host names of nodes that are ready: web-n1, web-n2" in " ".join(
            told.split()
        )
        assert "it is" not in told

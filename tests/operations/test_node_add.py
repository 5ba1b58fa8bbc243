"""A host that does not prove itself is no node: its label is set back, and what failed there before does not count."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.support.fake_engine import config, fake_engine
from tests.support.operator import LOCAL, ROOT, Checkout, checkout

SERVICE = "lyttlenginx_lyttlenginx"
IMAGE = "lyttle-ops:1.0.0-0123456789ab"
TEMPLATE = {"ContainerSpec": {"Image": IMAGE}, "Placement": {"Constraints": ["node.labels.lyttle.edge == true"]}}
LIVE = {"ID": "s", "Spec": {"Name": SERVICE, "TaskTemplate": TEMPLATE, "Mode": {"Global": {}}}}
NODE = {
    "ID": "id4",
    "Description": {"Hostname": "web-4"},
    "Status": {"State": "ready", "Addr": "127.0.0.2"},
    "Spec": {"Role": "worker", "Availability": "active", "Labels": {"lyttle.edge": "true"}},
}
RECORD = {
    "number": 1,
    "image": IMAGE,
    "version": "1.0.0",
    "result": "succeeded",
    "mode": {"kind": "global"},
    "specs": {},
}
AT_IMAGE, AT_TASKS = f"/images/{quote(IMAGE)}/json", "/tasks"
# The real one wants Docker's own library; what matters here is that the label is set by it.
DOCKER_NODE = """
import os
from ansible.module_utils.basic import AnsibleModule
options = ("hostname", "role", "availability", "labels", "labels_state")
module = AnsibleModule({name: {"type": "raw"} for name in options})
with open(os.environ["COMMANDS"], "a") as log:
    log.write(f"label {module.params['hostname']} {module.params['labels']['lyttle.edge']}\\n")
module.exit_json(changed=True)
"""


pytestmark = pytest.mark.timeout(400)  # ansible-playbook on a busy machine


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    made = checkout(tmp_path, [])
    modules = tmp_path / "ansible_collections/community/docker/plugins/modules"
    modules.mkdir(parents=True)
    (modules / "docker_node.py").write_text(DOCKER_NODE)
    return made


# Three starts on the new node that failed.
FAILED: list[dict[str, Any]] = [
    {
        "ID": f"t{number}",
        "NodeID": "id4",
        "CreatedAt": "2026-01-01T00:00:00Z",
        "DesiredState": "shutdown",
        "Status": {"State": "failed", "Err": "no such image"},
        "Spec": TEMPLATE,
    }
    for number in range(3)
]


def add(
    work: Checkout,
    label: str = "",
    update: str = "true",
    known: str = "",
    ran: str = "",
    lost_at: str | None = None,
) -> tuple[list[str], str]:
    """The commands that the Swarm was given, and what was said. `update`: what `docker node update` does; `known`: the
    ids of tasks that were there before; `ran`: the state of the one that should run on the node; `lost_at`: what the
    engine is asked when somebody else takes the lock over, and is done."""
    log = work.folder / "commands"
    log.write_text("")
    work.folder.joinpath("docker").write_text(
        f'#!/bin/sh\ncase "$*" in *inspect*) echo "{label}";; "image ls"*) echo it-is-there;; '
        f'"service ps"*node=id4*) echo {ran};; "service ps"*) echo {known};; '
        f'"node update"*) echo "$*" >> {log}; {update};; *) echo "$*" >> {log};; esac\n'
    )
    work.folder.joinpath("docker").chmod(0o755)
    groups = "[managers]\nn1\n[workers]\nn4\n[swarm:children]\nmanagers\nworkers\n"
    (work.folder / "inventory.ini").write_text(f"n1 {LOCAL}\nn4 {LOCAL}\n{groups}")
    member = {"state": "active", "node_id": "id4", "name": "web-4"}
    role = {"name": "stack", "tasks_from": "node_add.yml"}
    variables = {"stack_node": "n4", "stack_node_seconds": 3}
    path = f"{work.folder}:/usr/bin:/bin"
    configs = [config("lyttlenginx_release_1", {**RECORD, "specs": {}})]
    answers: dict[str, Any] = {
        AT_IMAGE: {"Id": "sha256:0123456789abcdef"},
        "/services": [LIVE],
        f"/services/{SERVICE}": LIVE,
        "/nodes": [NODE],
        AT_TASKS: FAILED,
        "/configs": configs,
    }
    if lost_at:
        said_then = answers[lost_at]

        def lose() -> object:
            configs[1:] = []
            return said_then

        answers[lost_at] = lose
    with fake_engine(work.folder.parent / "s", answers) as host:
        environment = {"PATH": path, "DOCKER_HOST": host, "COMMANDS": str(log)}
        plays = [
            {"hosts": "n4", "gather_facts": False, "tasks": [{"ansible.builtin.set_fact": {"swarm_info": member}}]},
            {
                "hosts": "n1", "gather_facts": False, "environment": environment,
                "tasks": [{"ansible.builtin.import_role": role, "vars": variables}],
            },
        ]  # fmt: skip
        (work.folder / "play.yml").write_text(yaml.safe_dump(plays, sort_keys=False))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory.ini", "play.yml"],
            cwd=work.folder,
            env=work.environment(
                ANSIBLE_ROLES_PATH=str(ROOT / "roles"), ANSIBLE_COLLECTIONS_PATH=str(work.folder.parent)
            ),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    names = [each["Spec"]["Name"] for each in configs]
    assert names == ["lyttlenginx_release_1"]  # the lock is released, whatever came of it
    return log.read_text().splitlines(), " ".join((done.stdout + done.stderr).replace("\\n", " ").split())


def test_a_host_that_does_not_prove_itself_loses_its_label_again(work: Checkout) -> None:
    commands, said = add(work)
    assert commands == ["label id4 true", "node update --label-add lyttle.edge=false id4"], said
    assert "3 starts failed on web-4. Its task on web-4 ended: no such image" in said
    assert "The label lyttle.edge of n4 is false again, so nothing runs there and no deploy waits for it" in said


def test_a_label_that_cannot_be_set_back_is_said(work: Checkout) -> None:
    refuses = "echo the swarm has no leader >&2; exit 1"
    commands, said = add(work, label="false", update=refuses)
    assert commands == ["label id4 true", "node update --label-add lyttle.edge=false id4"], said
    assert "3 starts failed on web-4" in said
    assert "could NOT be set back (the swarm has no leader), so every deploy waits for a task there: `docker" in said


@pytest.mark.parametrize("ran", ["", "Starting 3 seconds ago"])
def test_a_label_that_a_killed_run_left_is_taken_away(work: Checkout, ran: str) -> None:
    commands, said = add(work, label="true", ran=ran)
    assert commands == ["label id4 true", "node update --label-add lyttle.edge=false id4"], said
    assert "The label lyttle.edge of n4 is false again" in said


def test_a_node_that_served_before_keeps_its_label(work: Checkout) -> None:
    commands, said = add(work, label="true", ran="Running 2 hours ago")
    assert commands == ["label id4 true"], said
    assert "The label lyttle.edge of n4 is as it was before" in said


@pytest.mark.parametrize(
    ("lost_at", "reason"), [(AT_IMAGE, "The deploy lock was taken over"), (AT_TASKS, "3 starts failed on web-4")]
)
def test_the_label_is_theirs_who_took_the_lock_over(work: Checkout, lost_at: str, reason: str) -> None:
    commands, said = add(work, lost_at=lost_at)
    assert commands == ["label id4 true"], said
    assert reason in said
    assert "The label lyttle.edge of n4 was left as it is, since the cluster is theirs who have the lock now" in said


def test_what_failed_in_an_earlier_attempt_does_not_count(work: Checkout) -> None:
    _, said = add(work, known="'t0\nt1\nt2'")
    assert "web-4 did not run the new version within 3 s" in said
    assert "3 starts failed" not in said

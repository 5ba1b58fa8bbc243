"""A host that does not prove itself is no node: its label is set back, also the one that a killed run left there. A
node of before stays one, and what failed there before does not count."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.support.answering import answering
from tests.support.fake_engine import config, fake_engine
from tests.support.operator import LOCAL, ROOT, Checkout, checkout

SERVICE = "lyttlenginx_lyttlenginx"
IMAGE = "lyttle-ops:1.0.0-0123456789ab"
TEMPLATE = {"ContainerSpec": {"Image": IMAGE}, "Placement": {"Constraints": ["node.labels.lyttle.edge == true"]}}
LIVE = {"ID": "s", "Spec": {"Name": SERVICE, "TaskTemplate": TEMPLATE, "Mode": {"Global": {}}}}
NODE: dict[str, Any] = {
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
# The real one wants Docker's own library; what matters here is which labels it sets and takes away in one update.
DOCKER_NODE = """
import os
from ansible.module_utils.basic import AnsibleModule
options = ("hostname", "role", "availability", "labels", "labels_state", "labels_to_remove")
module = AnsibleModule({name: {"type": "raw"} for name in options})
with open(os.environ["COMMANDS"], "a") as log:
    added = [f"{name}={value}" for name, value in (module.params["labels"] or {}).items()]
    removed = [f"-{name}" for name in module.params["labels_to_remove"] or []]
    log.write(" ".join(["label", module.params["hostname"], *added, *removed]) + "\\n")
module.exit_json(changed=True)
"""
LABELLED, MARKED = "label id4 lyttle.edge=true", "label id4 lyttle.edge=true lyttle.adding=true"
PROVED = "label id4 -lyttle.adding"
# Docker adds labels before it takes one away, which has to be there.
BACK = "node update --label-add lyttle.edge=false --label-add lyttle.adding=true --label-rm lyttle.adding id4"


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
RUNS = {**FAILED[0], "ID": "t9", "DesiredState": "running", "Status": {"State": "running"}}
STARTS = {**RUNS, "Status": {"State": "starting"}}


def add(
    work: Checkout,
    labels: str = "/",
    update: str = "true",
    known: str = "",
    tasks: Sequence[dict[str, Any]] = FAILED,
    answers_there: bool = False,
    edge: bool = True,
    lost_at: str | None = None,
) -> tuple[list[str], str]:
    """The commands that the Swarm was given, and what was said. `labels`: the node's lyttle.edge and lyttle.adding
    before it; `update`: what `docker node update` does; `known`: the ids of tasks of before; `tasks`: those that there
    are; `answers_there`: whether clients reach the one that runs; `edge`: the inventory's swarm_edge; `lost_at`: what
    the engine is asked when somebody else takes the lock over, and is done."""
    log = work.folder / "commands"
    log.write_text("")
    work.folder.joinpath("docker").write_text(
        f'#!/bin/sh\ncase "$*" in *inspect*) echo "{labels}";; "image ls"*) echo it-is-there;; '
        f'"service ps"*) echo {known};; '
        f'"node update"*) echo "$*" >> {log}; {update};; *) echo "$*" >> {log};; esac\n'
    )
    work.folder.joinpath("docker").chmod(0o755)
    groups = "[managers]\nn1\n[workers]\nn4\n[swarm:children]\nmanagers\nworkers\n"
    (work.folder / "inventory.ini").write_text(f"n1 {LOCAL}\nn4 {LOCAL}\n{groups}")
    facts = {"swarm_info": {"state": "active", "node_id": "id4", "name": "web-4"}, "swarm_edge": edge}
    role = {"name": "stack", "tasks_from": "node_add.yml"}
    variables = {"stack_node": "n4", "stack_node_seconds": 3, "stack_http_port": 1}  # nothing listens there
    path = f"{work.folder}:/usr/bin:/bin"
    configs = [config("lyttlenginx_release_1", {**RECORD, "specs": {}})]
    answers: dict[str, Any] = {
        AT_IMAGE: {"Id": "sha256:0123456789abcdef"},
        "/services": [LIVE],
        f"/services/{SERVICE}": LIVE,
        "/nodes": [NODE],
        AT_TASKS: list(tasks),
        "/configs": configs,
    }
    if lost_at:
        said_then = answers[lost_at]

        def lose() -> object:
            configs[1:] = []
            return said_then

        answers[lost_at] = lose
    with ExitStack() as stack:
        if answers_there:
            variables["stack_http_port"] = stack.enter_context(answering(RUNS["ID"], NODE["Status"]["Addr"]))
        host = stack.enter_context(fake_engine(work.folder.parent / "s", answers))
        environment = {"PATH": path, "DOCKER_HOST": host, "COMMANDS": str(log)}
        plays = [
            {"hosts": "n4", "gather_facts": False, "tasks": [{"ansible.builtin.set_fact": facts}]},
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
    assert commands == [MARKED, BACK], said
    assert "3 starts failed on web-4. Its task on web-4 ended: no such image" in said
    assert "The label lyttle.edge of n4 is false again, so nothing runs there and no deploy waits for it" in said


def test_a_label_that_cannot_be_set_back_is_said(work: Checkout) -> None:
    refuses = "echo the swarm has no leader >&2; exit 1"
    commands, said = add(work, labels="false/", update=refuses)
    assert commands == [MARKED, BACK], said
    assert "3 starts failed on web-4" in said
    assert "could NOT be set back (the swarm has no leader), so every deploy waits for a task there: `docker" in said


def test_a_label_that_a_killed_run_left_is_taken_away_though_a_task_runs_by_it(work: Checkout) -> None:
    commands, said = add(work, labels="true/true", tasks=[RUNS])
    assert commands == [MARKED, BACK], said
    assert "http://127.0.0.2/.well-known/lyttle-ops gives no answer" in said
    assert "The label lyttle.edge of n4 is false again" in said


def test_a_node_that_served_before_keeps_its_label_though_no_task_runs_there_now(work: Checkout) -> None:
    commands, said = add(work, labels="true/", tasks=[STARTS])
    assert commands == [LABELLED], said
    assert "web-4 did not run the new version within 3 s" in said
    assert "The label lyttle.edge of n4 is as it was before" in said


@pytest.mark.parametrize(
    ("labels", "expected"), [("/", [MARKED, PROVED]), ("true/true", [MARKED, PROVED]), ("true/", [LABELLED])]
)
def test_a_node_that_is_proved_is_one_like_the_others(work: Checkout, labels: str, expected: list[str]) -> None:
    commands, said = add(work, labels=labels, tasks=[RUNS], answers_there=True)
    assert commands == expected, said
    assert "failed=1" not in said


def test_a_host_that_is_to_serve_nothing_keeps_no_mark_of_a_killed_run(work: Checkout) -> None:
    commands, said = add(work, labels="true/true", edge=False)
    assert commands == ["label id4 lyttle.edge=false", PROVED], said
    assert "failed=1" not in said


LOST = "The deploy lock was taken over"


@pytest.mark.parametrize(
    ("lost_at", "answers_there", "reason"),
    [(AT_IMAGE, False, LOST), (AT_TASKS, False, "3 starts failed on web-4"), (AT_TASKS, True, LOST)],
    ids=["before the label", "before a proof that fails", "before one that succeeds"],
)
def test_the_labels_are_theirs_who_took_the_lock_over(
    work: Checkout, lost_at: str, answers_there: bool, reason: str
) -> None:
    tasks = [RUNS] if answers_there else FAILED
    commands, said = add(work, tasks=tasks, answers_there=answers_there, lost_at=lost_at)
    assert commands == [MARKED], said
    assert reason in said
    assert "The label lyttle.edge of n4 was left as it is, since the cluster is theirs who have the lock now" in said


def test_what_failed_in_an_earlier_attempt_does_not_count(work: Checkout) -> None:
    _, said = add(work, known="'t0\nt1\nt2'")
    assert "web-4 did not run the new version within 3 s" in said
    assert "3 starts failed" not in said

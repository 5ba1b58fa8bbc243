"""The way back after a failed deploy: what it says, also when it fails as well, or is not ours to go any more."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import fake_engine
from tests.support.operator import ROOT, checkout, tell

HELD = {
    "Spec": {"Name": "lyttlenginx_ports", "TaskTemplate": {"ContainerSpec": {"Image": "i"}}, "Mode": {"Global": {}}}
}
FACTS = {
    "stack_plan": {"newest": {"version": "1.0.0", "mode": {"kind": "global"}, "inputs": {}}},
    "stack_baseline": {"nodes": []},
    "stack_lock": {"lock": {"id": ""}},
    "stack_node_seconds": 1,
}
CHANGED = {"changed": True, "services": ["lyttlenginx_ports"]}
ENGINE = {"/configs": [], "/services": [HELD], "/services/lyttlenginx_ports": HELD, "/nodes": [], "/tasks": []}


def config(number: int, **record: Any) -> dict[str, Any]:
    """A release that succeeded, as Swarm keeps it."""
    data = {"number": number, "result": "succeeded", "inputs_digest": str(number), **record}
    spec = {"Name": f"lyttlenginx_release_{number}", "Data": base64.b64encode(json.dumps(data).encode()).decode()}
    return {"ID": f"config{number}", "Spec": spec}


def put_back(
    folder: Path, answers: dict[str, object], failing: dict[str, object] | None = None, **facts: object
) -> tuple[int, str]:
    """Exit code and words of a deploy whose failing task is this one, with the facts that it had by then."""
    work = checkout(folder, ["n1"])
    (work.folder / "roles").rmdir()
    (work.folder / "roles").symlink_to(ROOT / "roles")
    block = {
        "block": [{"name": "Prove n1", **(failing or {"ansible.builtin.fail": {"msg": "n1 answers 502"}})}],
        "rescue": [{"ansible.builtin.include_role": {"name": "stack", "tasks_from": "put_back.yml"}}],
        "vars": {**FACTS, **facts},
    }
    with (work.folder / "inventory.ini").open("a") as file:
        file.write("[swarm:children]\nmanagers\n")
    work.playbook("deploy", [tell(outcome="failed"), block])
    role = ROOT / "roles/stack"
    with fake_engine(folder / "docker.sock", answers) as host:
        done = work.run(
            "deploy",
            DOCKER_HOST=host,
            ANSIBLE_LIBRARY=str(role / "library"),
            ANSIBLE_MODULE_UTILS=str(role / "module_utils"),
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize("changed", ["stack_deployed", "stack_ports_deployed"])
def test_what_is_known_of_the_nodes_is_said(tmp_path: Path, changed: str) -> None:
    code, told = put_back(tmp_path, ENGINE, **{changed: CHANGED})
    assert code == 1, told
    assert (
        "n1 answers 502. The old version is NOT back on every node (The service lyttlenginx_lyttlenginx does not exist;"
        " deploy it first); `lyttle-ops status` shows the nodes"
    ) in told


def test_whoever_lost_the_lock_leaves_the_cluster_to_the_one_who_has_it(tmp_path: Path) -> None:
    # What runs differs from the last good release: whoever has the lock would deploy that one again.
    good = config(1, version="1.0.0", image="i", specs={"lyttlenginx_ports": "another"})
    lost: dict[str, object] = {"lyttle_lock": {"action": "refresh", "id": "gone"}}
    code, told = put_back(tmp_path, {**ENGINE, "/configs": [good]}, lost, stack_deployed=CHANGED)
    assert code == 1, told
    assert (
        "this deploy stops here. Nothing was put back, since the cluster is theirs now;"
        " `lyttle-ops history` tells who they are"
    ) in told

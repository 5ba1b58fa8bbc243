"""The way back after a failed deploy, when it fails as well: the reason is never empty."""

from pathlib import Path

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


@pytest.mark.parametrize("changed", ["stack_deployed", "stack_ports_deployed"])
def test_what_is_known_of_the_nodes_is_said(tmp_path: Path, changed: str) -> None:
    work = checkout(tmp_path, ["n1"])
    (work.folder / "roles").rmdir()
    (work.folder / "roles").symlink_to(ROOT / "roles")
    block = {
        "block": [{"name": "Prove n1", "ansible.builtin.fail": {"msg": "n1 answers 502"}}],
        "rescue": [{"ansible.builtin.include_role": {"name": "stack", "tasks_from": "put_back.yml"}}],
        "vars": {**FACTS, changed: {"services": ["lyttlenginx_ports"]}},
    }
    with (work.folder / "inventory.ini").open("a") as file:
        file.write("[swarm:children]\nmanagers\n")
    work.playbook("deploy", [tell(outcome="failed"), block])
    engine = {"/configs": [], "/services": [HELD], "/services/lyttlenginx_ports": HELD, "/nodes": [], "/tasks": []}
    with fake_engine(tmp_path / "docker.sock", engine) as host:
        done = work.run("deploy", DOCKER_HOST=host)
    assert done.returncode == 1, done.stderr
    assert (
        "n1 answers 502. The old version is NOT back on every node (The service lyttlenginx_lyttlenginx does not exist;"
        " deploy it first); `lyttle-ops status` shows the nodes"
    ) in done.stderr

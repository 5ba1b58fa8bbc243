"""A deploy from its lock on: what it was planned from still stands, and what it goes back to is what served before."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import loopback, modules
from tests.support.answering import answering
from tests.support.fake_engine import fake_engine
from tests.support.operator import ROOT, checkout, tell

NODE = "lyttlenginx_lyttlenginx"


def release(number: int, image: str, **changes: Any) -> dict[str, Any]:
    """A release that succeeded."""
    return {
        "number": number,
        "result": "succeeded",
        "action": "deploy",
        "operator": "ann@desk",
        "image": image,
        "version": image.rpartition(":")[2],
        "mode": {"kind": "global"},
        "inputs": {"compose": ["a: 1"], "variables": {"LYTTLE_IMAGE": image, "LYTTLE_PORTS_IMAGE": "ports"}},
        "inputs_digest": image,
        "specs": {NODE: image},
        **changes,
    }


def config(record: dict[str, Any]) -> dict[str, Any]:
    data = base64.b64encode(json.dumps(record).encode()).decode()
    name = f"lyttlenginx_release_{record['number']}"
    return {"ID": f"config{record['number']}", "Version": {"Index": 1}, "Spec": {"Name": name, "Data": data}}


class Deploy:
    """deploy.yml with the image lyttle-ops:b, on a Swarm whose service runs the image `runs`: without nodes, or with
    one, on which the image `bad` serves nothing."""

    def __init__(self, folder: Path, runs: str, bad: str = "") -> None:
        self._folder = folder
        self._bad = bad
        self.stack_files = folder / "stack-files"  # those of the last `docker stack deploy`
        self._images = folder / "images"
        self._images.write_text(f"{runs}\n")
        self.configs: list[dict[str, Any]] = []
        docker = folder / "bin/docker"
        docker.parent.mkdir()
        kept = f'for each; do [ ! -f "$each" ] || cat "$each"; done >{self.stack_files}'
        docker.write_text(f'#!/bin/sh\n{kept}\necho "$LYTTLE_IMAGE" >>{self._images}\n')
        docker.chmod(0o755)

    @property
    def images(self) -> list[str]:
        """What the service has run, one after the other."""
        return self._images.read_text().split()

    def specs(self, image: str) -> dict[str, str]:
        """What the record of a release with this image says of the service."""
        return {NODE: modules.load("lyttle_engine").spec_digest(self._service(image)["Spec"])}

    def _tasks(self) -> list[dict[str, Any]]:
        task = {"NodeID": "id-n1", "DesiredState": "running", "Status": {"State": "running"}, "CreatedAt": "2026"}
        spec = self._service()["Spec"]["TaskTemplate"]
        return [{**task, "ID": f"task-{self.images[-1]}", "Spec": spec}] if self._bad else []

    def _service(self, image: str = "") -> dict[str, Any]:
        template = {"ContainerSpec": {"Image": image or self.images[-1]}}
        spec = {"Name": NODE, "TaskTemplate": template, "Mode": {"Global": {}}}
        return {"ID": "s1", "Spec": spec, "Version": {"Index": 1}, "UpdatedAt": "2026-01-02T03:04:05.6Z"}

    def run(self, known: dict[str, Any], **facts: object) -> tuple[int, str]:
        """Exit code and words, when `known` was the newest release while it was planned."""
        address = loopback.address()
        with answering(lambda: "" if self.images[-1] == self._bad else f"task-{self.images[-1]}", address) as port:
            return self._run(known, address, port, facts)

    def _run(self, known: dict[str, Any], address: str, port: int, facts: dict[str, object]) -> tuple[int, str]:
        work, role = checkout(self._folder, ["n1"]), ROOT / "roles/stack"
        (work.folder / "roles").rmdir()
        (work.folder / "roles").symlink_to(ROOT / "roles")
        (work.folder / "docker-compose.swarm.yml").touch()
        with (work.folder / "inventory.ini").open("a") as file:
            file.write("[swarm:children]\nmanagers\n")
        before = {
            "stack_known": {"newest": known},
            "stack_wanted_image": "lyttle-ops:b",
            "stack_wanted_version": "b",
            "stack_wanted_mode": {"kind": "global"},
            "stack_wanted_inputs": release(0, "lyttle-ops:b")["inputs"],
            "stack_found": {"registry": ""},
            **facts,
        }
        deploy = {"ansible.builtin.include_role": {"name": "stack", "tasks_from": "deploy.yml"}}
        work.playbook(
            "deploy",
            [
                tell(outcome="refused"),
                {"ansible.builtin.set_fact": before},
                {**deploy, "vars": {"stack_node_seconds": 20 if self._bad else 1, "stack_http_port": port}},
            ],
        )
        answers = {
            "/configs": self.configs,
            "/services": lambda: [self._service()],
            f"/services/{NODE}": self._service,
            "/nodes": [
                {
                    "ID": "id-n1",
                    "Description": {"Hostname": "n1"},
                    "Status": {"State": "ready", "Addr": address},
                    "Spec": {"Role": "manager", "Availability": "active"},
                }
            ]
            if self._bad
            else [],
            "/tasks": self._tasks,
            "/secrets": [],
        }
        with fake_engine(self._folder / "docker.sock", answers) as host:
            done = work.run(
                "deploy",
                DOCKER_HOST=host,
                PATH=f"{self._folder}/bin:/usr/bin:/bin",
                ANSIBLE_LIBRARY=str(role / "library"),
                ANSIBLE_MODULE_UTILS=str(role / "module_utils"),
            )
        return done.returncode, " ".join(done.stderr.split())


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    return Deploy(tmp_path, "lyttle-ops:a")


def test_a_deploy_is_refused_when_somebody_else_deployed_since_it_was_planned(deploy: Deploy) -> None:
    known, newer = release(1, "lyttle-ops:a"), release(2, "lyttle-ops:c")
    deploy.configs += [config(known), config(newer)]
    code, told = deploy.run(known)
    assert code == 3, told
    assert "Somebody deployed meanwhile (release 2, c, by ann@desk); run it again. Nothing was changed" in told
    assert deploy.images == ["lyttle-ops:a"]
    assert [each["ID"] for each in deploy.configs] == ["config1", "config2"]  # no lock, no record


def test_a_play_that_deploys_twice_does_not_take_itself_for_somebody_else(deploy: Deploy) -> None:
    known, own = release(1, "lyttle-ops:a"), release(2, "lyttle-ops:a")
    deploy.configs += [config(known), config(own)]
    _, told = deploy.run(known, stack_own_release=2)
    assert "meanwhile" not in told
    assert deploy.images[:2] == ["lyttle-ops:a", "lyttle-ops:b"], told


def test_a_second_deploy_of_a_play_is_not_told_by_the_first(deploy: Deploy) -> None:
    known, newer = release(1, "lyttle-ops:a"), release(2, "lyttle-ops:c")
    deploy.configs += [config(known), config(newer)]
    did = {"changed": True, "services": [NODE]}
    first = {"stack_release": {"release": known}, "stack_deployed": did, "stack_mode_changed": did}
    code, told = deploy.run(known, **first, stack_plan={"newest": known}, stack_own_release=1)
    assert (code, "run it again. Nothing more was changed" in told) == (1, True), told
    assert deploy.images == ["lyttle-ops:a"]
    assert "Labels" not in deploy.configs[0]["Spec"]  # where it would stand that release 1 failed


@pytest.mark.parametrize("runs", ["lyttle-ops:a", "lyttle-ops:by-hand"])
def test_a_deploy_that_fails_goes_back_to_what_served_before(tmp_path: Path, runs: str) -> None:
    deploy, known = Deploy(tmp_path, runs), release(1, "lyttle-ops:a")
    deploy.configs.append(config(known))
    code, told = deploy.run(known)
    assert "No node that is ready and active may run the service" in told
    assert deploy.images == [runs, "lyttle-ops:b", runs], told
    assert code == 1  # without a node nobody was seen serving


def test_a_deploy_that_goes_on_from_a_killed_one_puts_the_last_good_release_back(tmp_path: Path) -> None:
    deploy, known = Deploy(tmp_path, "lyttle-ops:b"), release(1, "lyttle-ops:a")
    killed = release(2, "lyttle-ops:b", result="running", specs={})
    deploy.configs += [config(known), config(killed)]
    code, told = deploy.run(known)
    assert deploy.images == ["lyttle-ops:b", "lyttle-ops:b", "lyttle-ops:a"], told
    assert code == 1, told
    assert "Nothing was changed" not in told


def test_what_a_failed_deploy_left_never_counts_as_good(tmp_path: Path) -> None:
    deploy, known = Deploy(tmp_path, "lyttle-ops:bad"), release(1, "lyttle-ops:a")
    left = release(2, "lyttle-ops:bad", result="failed")
    refused = release(3, "lyttle-ops:c", result="failed", specs={NODE: "lyttle-ops:bad"})
    deploy.configs += [config(known), config(left), config(refused)]
    _, told = deploy.run(known)
    assert deploy.images == ["lyttle-ops:bad", "lyttle-ops:b", "lyttle-ops:a"], told


def test_an_image_that_was_put_back_and_is_there_again_was_put_there_by_hand(tmp_path: Path) -> None:
    deploy, known = Deploy(tmp_path, "lyttle-ops:hand"), release(1, "lyttle-ops:a")
    deploy.configs += [config(known), config(release(2, "lyttle-ops:hand", result="failed", specs=known["specs"]))]
    _, told = deploy.run(known)
    assert deploy.images == ["lyttle-ops:hand", "lyttle-ops:b", "lyttle-ops:hand"], told


@pytest.mark.parametrize("killed", [False, True], ids=["", "after one that was killed"])
def test_the_old_version_serves_again_in_its_own_mode(tmp_path: Path, killed: bool) -> None:
    deploy = Deploy(tmp_path, "lyttle-ops:b" if killed else "lyttle-ops:a", bad="lyttle-ops:b")
    known = release(1, "lyttle-ops:a", specs=deploy.specs("lyttle-ops:a"))
    deploy.configs.append(config(known))
    if killed:
        deploy.configs.append(config(release(2, "lyttle-ops:b", result="running", specs={})))
    code, told = deploy.run(known, stack_wanted_mode={"kind": "global", "node": "n1"})
    assert code == 4, told
    assert "a serves again on n1" in told
    assert deploy.images[-2:] == ["lyttle-ops:b", "lyttle-ops:a"]
    assert "mode: global" in deploy.stack_files.read_text()
    assert "node.hostname" not in deploy.stack_files.read_text()


@pytest.mark.parametrize(("action", "code"), [("deploy", 1), ("by hand", 4)])
def test_what_is_not_as_the_good_release_had_it_does_not_serve_again(tmp_path: Path, action: str, code: int) -> None:
    deploy = Deploy(tmp_path, "lyttle-ops:a", bad="lyttle-ops:b")
    known = release(1, "lyttle-ops:a", action=action, specs={NODE: "other settings"})
    deploy.configs.append(config(known))
    found, told = deploy.run(known)
    assert found == code, told
    # What somebody's hand gave the service stands in no record but for the image.
    said = f"NOT back on every node (the settings of {NODE} differ from release 1"
    assert (said in told) == (action == "deploy")

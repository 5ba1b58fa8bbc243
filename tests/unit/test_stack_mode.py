"""A change of mode: nothing that serves goes before its successor does, and what was changed is told when it fails."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import modules

mode, engine = modules.load("lyttle_mode"), modules.load("lyttle_engine")

NAME = "lyttlenginx_lyttlenginx"
TWIN = f"{NAME}-next"
GLOBAL, REPLICATED = {"Global": {}}, {"Replicated": {"Replicas": 1}}


class Swarm:
    """One node. `sick`: names and kinds of services that never get healthy; `steps`: what was done to it."""

    def __init__(self, services: dict[str, Any], sick: set[tuple[str, str]]) -> None:
        self._specs = {name: self._spec(name, kind) for name, kind in services.items()}
        self.sick, self.steps = sick, list[str]()
        self.refuse = ""  # a step that the engine refuses

    @staticmethod
    def _spec(name: str, kind: dict[str, Any]) -> dict[str, Any]:
        template = {"ContainerSpec": {"Image": "i"}, "Placement": {"Constraints": ["node.labels.lyttle.edge == true"]}}
        return {"Name": name, "TaskTemplate": template, "Mode": kind}

    def service(self, name: str) -> dict[str, Any] | None:
        return {"Spec": copy.deepcopy(self._specs[name])} if name in self._specs else None

    def nodes(self) -> list[dict[str, Any]]:
        spec = {"Role": "worker", "Availability": "active", "Labels": {"lyttle.edge": "true"}}
        return [{"ID": "id-n1", "Description": {"Hostname": "n1"}, "Spec": spec, "Status": {"State": "ready"}}]

    def tasks(self, name: str) -> list[dict[str, Any]]:
        spec = self._specs[name]
        state = "starting" if (name, engine.mode_of(spec)) in self.sick else "running"
        made = {"ID": name, "NodeID": "id-n1", "Spec": spec["TaskTemplate"], "DesiredState": "running"}
        return [{**made, "Status": {"State": state}}]

    def call(self, method: str, path: str, body: Any = None, **_: object) -> None:
        name = body["Name"] if body else path.rpartition("/")[2]
        step = f"{method} {name}" + (f" {engine.mode_of(body)}" if body else "")
        if step == self.refuse:
            raise engine.EngineError("no leader", 503)
        if body:
            self._specs[name] = body
        elif self._specs.pop(name, None) is None:
            raise engine.EngineError("not found", 404)
        self.steps.append(step)


Run = Callable[..., tuple[Swarm, dict[str, Any]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Asks for a mode; returns what was done, and what the module answers."""
    at = [0.0]

    def sleep(seconds: float) -> None:
        at[0] += seconds

    monkeypatch.setattr(mode, "time", SimpleNamespace(monotonic=lambda: at[0], sleep=sleep))
    monkeypatch.setattr(mode, "check_parent", lambda: None)

    def ask(
        kind: str, services: dict[str, Any], sick: set[tuple[str, str]] | None = None, refuse: str = ""
    ) -> tuple[Swarm, dict[str, Any]]:
        swarm = Swarm(services, sick or set())
        swarm.refuse = refuse
        monkeypatch.setattr(mode, "Engine", lambda _: swarm)
        return swarm, modules.call(mode, mode={"kind": kind} if kind else {})

    return ask


def test_a_twin_serves_while_the_service_is_replaced(run: Run) -> None:
    swarm, told = run("replicated", {NAME: GLOBAL})
    assert swarm.steps == [f"POST {TWIN} replicated", f"DELETE {NAME}", f"POST {NAME} replicated", f"DELETE {TWIN}"]
    assert told["changed"]
    assert not told.get("failed")


def test_a_twin_that_does_not_get_healthy_changes_nothing(run: Run) -> None:
    swarm, told = run("replicated", {NAME: GLOBAL}, {(TWIN, "replicated")})
    assert swarm.steps == [f"POST {TWIN} replicated", f"DELETE {TWIN}"]
    assert told["failed"]
    assert told["changed"] is False
    assert "The service was left as it is" in told["msg"]


def test_a_twin_that_cannot_be_removed_is_a_change(run: Run) -> None:
    _, told = run("replicated", {NAME: GLOBAL}, {(TWIN, "replicated")}, refuse=f"DELETE {TWIN}")
    assert told["failed"]
    assert told["changed"] is True


@pytest.mark.parametrize("refuse", ["", f"POST {NAME} replicated"])
def test_a_service_that_was_removed_is_a_change(run: Run, refuse: str) -> None:
    swarm, told = run("replicated", {NAME: GLOBAL}, {(NAME, "replicated")}, refuse)
    assert f"DELETE {NAME}" in swarm.steps
    assert told["failed"]
    assert told["changed"] is True


def test_on_the_way_back_the_twin_that_serves_stays_until_the_service_does(run: Run) -> None:
    swarm, told = run("global", {NAME: REPLICATED, TWIN: REPLICATED}, {(NAME, "replicated")})
    assert swarm.steps == [f"DELETE {NAME}", f"POST {NAME} global", f"DELETE {TWIN}"]
    assert not told.get("failed")


def test_on_the_way_back_from_a_twin_alone_the_service_gets_the_mode_that_is_wanted(run: Run) -> None:
    swarm, _ = run("global", {TWIN: REPLICATED})
    assert swarm.steps == [f"POST {NAME} global", f"DELETE {TWIN}"]


def test_a_twin_that_serves_no_better_than_the_service_is_begun_anew(run: Run) -> None:
    swarm, _ = run("replicated", {NAME: GLOBAL, TWIN: REPLICATED})
    assert swarm.steps[:2] == [f"DELETE {TWIN}", f"POST {TWIN} replicated"]


def test_what_an_earlier_run_left_is_finished(run: Run) -> None:
    swarm, told = run("", {NAME: GLOBAL, TWIN: GLOBAL})
    assert swarm.steps == [f"DELETE {TWIN}"]
    assert told["changed"]
    swarm, told = run("", {NAME: GLOBAL, TWIN: GLOBAL}, {(NAME, "global")})
    assert swarm.steps == []
    assert (told["failed"], told["changed"]) == (True, False)


def test_on_the_way_back_to_every_node_no_pin_to_one_is_left(run: Run) -> None:
    swarm, _ = run("replicated", {NAME: REPLICATED})
    swarm._specs[NAME]["TaskTemplate"]["Placement"]["Constraints"].append("node.hostname == n1")
    replacement = mode.Replacement({"docker_host": None, "service": NAME, "mode": {}, "lock_id": "", "lock_seconds": 1})
    back = replacement._spec(swarm._specs[NAME], {"kind": "global"})
    assert back["TaskTemplate"]["Placement"]["Constraints"] == ["node.labels.lyttle.edge == true"]
    one = replacement._spec(swarm._specs[NAME], {"kind": "global", "node": "n2"})
    assert one["TaskTemplate"]["Placement"]["Constraints"][1:] == ["node.hostname == n2"]

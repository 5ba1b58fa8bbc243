#!/usr/bin/python
"""Change a service between global and replicated mode while its nodes go on serving."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_mode
short_description: Replace a service by one of another mode without a gap
description:
  - Swarm cannot change a service's mode. So a twin (the service's name with C(-next)) starts in the wanted mode beside
    it; when the twin is healthy the service is removed, made again under its own name, and the twin goes. The
    holder of the ports lends the sockets to both, so that a node with either refuses nobody.
  - A run that was killed is finished by the next one, from whatever it left. A twin that serves stays until the service
    does.
options:
  service:
    description: The service.
    type: str
    default: lyttlenginx_lyttlenginx
  mode:
    description: C(kind) is C(global) or C(replicated); C(replicas); C(node) is the host where a single replica starts.
      Without C(kind) only what an earlier run left is finished.
    type: dict
    default: {}
  seconds:
    description: Time for each step.
    type: int
    default: 300
  lock_id:
    description: The deploy lock, refreshed meanwhile.
    type: str
    default: ""
  lock_seconds:
    description: Its time.
    type: int
    default: 600
  registry:
    description: The registry whose credentials the nodes need.
    type: str
    default: ""
  username:
    description: User of the registry.
    type: str
    default: ""
  password:
    description: The user's password or token.
    type: str
    default: ""
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: Nothing is replaced.
    support: full
"""

RETURN = r"""
nodes:
  description: Host names where the service runs now.
  type: list
  returned: success
lock_lost:
  description: Whether it failed because somebody else has the deploy lock.
  type: bool
  returned: failure
"""

import base64
import copy
import json
import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import (
    ARGUMENT,
    Engine,
    EngineError,
    HeldLock,
    LockLost,
    Orphaned,
    check_parent,
    mode_of,
)
from ansible.module_utils.lyttle_tasks import current_task, edge_nodes, error_of, failures, logs_of


class Replacement:
    """One change of mode."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._engine = Engine(options["docker_host"])
        self._name: str = options["service"]
        self._twin = f"{self._name}-next"
        self._lock = HeldLock(self._engine, options["lock_id"], options["lock_seconds"])
        self.changed = False  # whether anything differs from what this run found

    def due(self) -> bool:
        """Whether there is anything to do."""
        service = self._engine.service(self._name)
        kind = self._options["mode"].get("kind")
        return self._engine.service(self._twin) is not None or bool(
            service and kind and mode_of(service["Spec"]) != kind
        )

    def run(self) -> None:
        """Go on from whatever is there."""
        service, twin = self._engine.service(self._name), self._engine.service(self._twin)
        kind = self._options["mode"].get("kind")
        if twin and service and not (kind and mode_of(service["Spec"]) != kind):
            self._wait(self._name)  # what an earlier run left: the service is there, its twin is not needed
            self._remove(self._twin)
            return
        found = service or twin
        if found is None:
            raise EngineError(f"The service {self._name} does not exist")
        spec = self._spec(found["Spec"], self._options["mode"])
        if twin and service and (self._healthy(service) or not self._healthy(twin)):
            self._remove(self._twin)
            twin = None
        if twin is None:
            self._start_twin(spec)
        if service:
            self._remove(self._name)  # its twin serves meanwhile
        self._create({**spec, "Name": self._name})
        self._wait(self._name)
        self._remove(self._twin)
        self._unpin()

    def _start_twin(self, spec: dict[str, Any]) -> None:
        """A twin that is healthy; when there is none to be had, none is left."""
        before = self.changed
        try:
            self._create({**spec, "Name": self._twin})
            self._wait(self._twin)
        except LockLost:
            raise  # the twin is somebody else's to finish
        except EngineError as exc:
            self._remove(self._twin)
            self.changed = before
            raise EngineError(f"{exc}. The service was left as it is") from exc

    def _spec(self, spec: dict[str, Any], mode: dict[str, Any]) -> dict[str, Any]:
        """The spec in the wanted mode."""
        spec = copy.deepcopy(spec)
        if not mode.get("kind"):
            return spec
        if mode["kind"] == "global":
            spec["Mode"] = {"Global": {}}
            # The pin of a single replica whose change of mode was interrupted; the stack file has its own to give.
            placement = spec["TaskTemplate"].setdefault("Placement", {})
            pins = [c for c in placement.get("Constraints") or [] if not c.startswith("node.hostname ==")]
            placement["Constraints"] = pins + ([f"node.hostname == {mode['node']}"] if mode.get("node") else [])
            return spec
        replicas = int(mode.get("replicas") or 1)
        spec["Mode"] = {"Replicated": {"Replicas": replicas}}
        if replicas == 1 and mode.get("node"):
            # Both the twin and its successor start there, so that one address never stops answering.
            constraints = spec["TaskTemplate"].setdefault("Placement", {}).setdefault("Constraints", [])
            pin = f"node.hostname == {mode['node']}"
            if pin not in constraints:
                constraints.append(pin)
        return spec

    def _unpin(self) -> None:
        """Let Swarm move the single replica from now on. A change of placement alone restarts no task."""
        mode = self._options["mode"]
        service = self._engine.service(self._name)
        if not service or mode.get("kind") != "replicated" or not mode.get("node"):
            return
        pin = f"node.hostname == {mode['node']}"
        constraints = service["Spec"]["TaskTemplate"].get("Placement", {}).get("Constraints") or []
        if pin in constraints:
            constraints.remove(pin)
            self._begin()
            self._engine.update_service(service, service["Spec"])

    def nodes(self) -> list[str]:
        """Where it runs."""
        service = self._engine.service(self._name)
        if service is None:
            return []
        names = {node["ID"]: node["Description"]["Hostname"] for node in self._engine.nodes()}
        tasks = self._engine.tasks(self._name)
        return sorted(names[node] for node in names if current_task(tasks, service, node))

    def _create(self, spec: dict[str, Any]) -> None:
        headers = {}
        if self._options["username"]:
            login = {
                "username": self._options["username"],
                "password": self._options["password"],
                "serveraddress": self._options["registry"],
            }
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(json.dumps(login).encode()).decode()
        self._begin()
        self._engine.call("POST", "/services/create", body=spec, headers=headers)

    def _remove(self, name: str) -> None:
        self._begin()
        try:
            self._engine.call("DELETE", f"/services/{name}")
        except EngineError as exc:
            if exc.status != 404:
                raise

    def _wait(self, name: str) -> None:
        """Until the service is healthy everywhere."""
        deadline = time.monotonic() + self._options["seconds"]
        known: set[str] | None = None  # what failed before
        while time.monotonic() < deadline:
            self._tick()
            service = self._engine.service(name)
            if service is None:
                raise EngineError(f"The service {name} was removed by somebody else")
            if self._healthy(service):
                return
            tasks = self._engine.tasks(name)
            if known is None:
                known = {task["ID"] for task in failures(tasks)}
            failed = failures(tasks, known)
            if len(failed) >= 3:
                raise EngineError(f"{name} does not start: {error_of(failed[0])}.{logs_of(self._engine, failed[0])}")
            time.sleep(0.5)
        raise EngineError(f"{name} was not healthy within {self._options['seconds']} s")

    def _healthy(self, service: dict[str, Any]) -> bool:
        """Whether it runs wherever it should."""
        tasks = self._engine.tasks(service["Spec"]["Name"])
        nodes = edge_nodes(self._engine.nodes(), service["Spec"], {})
        running = [node for node in nodes if current_task(tasks, service, node["id"])]
        replicated = service["Spec"]["Mode"].get("Replicated")
        wanted = min(replicated["Replicas"], len(nodes)) if replicated else len(nodes)
        return bool(running) and len(running) >= wanted

    def _begin(self) -> None:
        """Before a change: the lock is still ours. Whatever comes of the change, it may have been made."""
        self._lock.hold()
        self.changed = True

    def _tick(self) -> None:
        check_parent()
        self._lock.keep()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "default": "lyttlenginx_lyttlenginx"},
            "mode": {"type": "dict", "default": {}},
            "seconds": {"type": "int", "default": 300},
            "lock_id": {"type": "str", "default": ""},
            "lock_seconds": {"type": "int", "default": 600},
            "registry": {"type": "str", "default": ""},
            "username": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            **ARGUMENT,
        },
        supports_check_mode=True,
    )
    replacement = Replacement(module.params)
    try:
        due = replacement.due()
        if due and not module.check_mode:
            replacement.run()
        module.exit_json(changed=due, nodes=replacement.nodes())
    except Orphaned:
        os._exit(1)  # nobody reads this any more; the next run goes on from here
    except EngineError as exc:
        module.fail_json(msg=str(exc), changed=replacement.changed, lock_lost=isinstance(exc, LockLost))


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Follow an update of the node service through the Swarm, and prove each node from outside."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_rollout
short_description: Prove each node of a rolling update, and put the old version back when one fails
description:
  - V(nodes) tells which nodes the service should run on; V(baseline) notes what each node answers before an update.
  - V(next) waits until Swarm runs the service's present spec on a node that has not proved it yet, and proves that
    node by requests from outside. A failed proof puts the old specs back at once, in the same call.
  - V(finish) waits until Swarm itself calls the update done and no node runs the old version; V(settle) waits until
    every node serves what the service says, after a put-back.
  - V(next) and V(finish) prove nothing but the spec O(wanted): Swarm's own rollback, or somebody's hand, may have given
    the service another one.
  - An outcome other than C(proved) fails the task, with everything that is known.
options:
  action:
    description: What to do.
    choices: [nodes, baseline, next, finish, settle]
    required: true
    type: str
  service:
    description: The node service.
    type: str
    default: lyttlenginx_lyttlenginx
  domains:
    description: Served domains, as C(lyttle-ops domains --json) tells them.
    type: list
    elements: dict
    default: []
  baseline:
    description: The nodes of a baseline. V(baseline) itself takes from it what they answered, where they run what an
      interrupted deploy left and so are no measure.
    type: list
    elements: dict
    default: []
  proven:
    description: Ids of nodes that are proven.
    type: list
    elements: str
    default: []
  only:
    description: Host names of the nodes to look at; all that the service can run on when empty.
    type: list
    elements: str
    default: []
  addresses:
    description: Addresses of nodes by host name, where Swarm's own is not the one that clients use.
    type: dict
    default: {}
  http_port:
    description: Where the nodes listen for HTTP.
    type: int
    default: 80
  https_port:
    description: Where the nodes listen for HTTPS.
    type: int
    default: 443
  wanted:
    description: Digest of the spec that the service was given, as M(lyttle_stack) tells it; empty for whatever it has.
    type: str
    default: ""
  known_tasks:
    description: Ids of the tasks of before the update, whose ends say nothing of it. Without them, those that have
      failed at the first look.
    type: list
    elements: str
  put_back:
    description: Services to put back when a proof fails, with the digest of the spec that each must come back to.
    type: dict
    default: {}
  proof_seconds:
    description: Time for one proof.
    type: int
    default: 15
  node_seconds:
    description: Time until the next node runs the new version.
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
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: Only V(nodes) and V(baseline) run.
    support: partial
"""

RETURN = r"""
outcome:
  description: C(proved), C(failed) (a proof), C(swarm) (Swarm itself gave up, or somebody changed
    the service) or C(late).
  type: str
  returned: next, finish, settle
reason:
  description: Why it was not proved.
  type: str
  returned: next, finish, settle
node:
  description: The node's host name, address, time and counts.
  type: dict
  returned: next
notes:
  description: What was as bad on another node, and so was not held against one.
  type: list
  returned: settle
nodes:
  description: The nodes with what they answered.
  type: list
  returned: baseline, settle
put_back:
  description: Whether the old specs were put back in this call.
  type: bool
  returned: next
lock_lost:
  description: Whether it failed because somebody else has the deploy lock.
  type: bool
  returned: failure
"""

import os
import time
from typing import Any

from ansible.module_utils import lyttle_proof as proof
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
    spec_digest,
)
from ansible.module_utils.lyttle_tasks import current_task, edge_nodes, error_of, failures, logs_of, meets

_POLL = 0.5  # seconds between two looks at the tasks
_BUSY = ("updating", "rollback_started")


class Rollout:
    """One call of the module."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._engine = Engine(options["docker_host"])
        self._name: str = options["service"]
        self._ports = proof.Ports(options["http_port"], options["https_port"])
        self._started = time.monotonic()
        self._lock = HeldLock(self._engine, options["lock_id"], options["lock_seconds"])
        known = options["known_tasks"]
        self._known_tasks = None if known is None else set(known)
        self._told: dict[str, str] = {}  # why tasks failed, by their ids, since Swarm soon forgets them

    def _tick(self) -> None:
        """Between two steps: does the play still live, and the lock?"""
        check_parent()
        self._lock.keep()

    def _service(self) -> dict[str, Any]:
        service = self._engine.service(self._name)
        if service is None:
            raise EngineError(f"The service {self._name} does not exist; deploy it first")
        return service

    def _nodes(self, service: dict[str, Any]) -> list[dict[str, Any]]:
        nodes = edge_nodes(self._engine.nodes(), service["Spec"], self._options["addresses"])
        only = self._options["only"]
        if mode_of(service["Spec"]) == "replicated":
            tasks = self._engine.tasks(self._name)
            holding = {task.get("NodeID") for task in tasks if task["DesiredState"] == "running"}
            nodes = [node for node in nodes if node["id"] in holding]
        return [node for node in nodes if not only or node["hostname"] in only]

    def nodes(self) -> dict[str, Any]:
        """The nodes that have to prove the service."""
        found = self._nodes(self._service())
        if not found:
            raise EngineError(
                "No node that is ready and active may run the service: set swarm_edge in the inventory, or "
                "`docker node update --label-add lyttle.edge=true NODE`"
            )
        return {"nodes": found}

    def _before(self, node_id: str) -> dict[str, str]:
        known = next((node for node in self._options["baseline"] if node["id"] == node_id), {})
        return dict(known.get("answers") or {})

    def baseline(self) -> dict[str, Any]:
        """What each node that runs the service answers now."""
        service = self._engine.service(self._name)
        if service is None:
            return {"nodes": [], "image": ""}
        tasks, nodes = self._engine.tasks(self._name), []
        asked = {proof.key(target) for target in proof.targets(self._options["domains"])}
        for node in self._nodes(service):
            self._tick()
            here = [t for t in tasks if t.get("NodeID") == node["id"]]
            running = next((t for t in here if t["Status"]["State"] == "running"), None)
            answers = proof.baseline(node["address"], self._ports, self._options["domains"]) if running else {}
            # A node that runs what an interrupted deploy left is no measure of what it should answer.
            before = next((known for known in self._options["baseline"] if known["id"] == node["id"]), None)
            measure = before is None or bool(running and running["ID"] == before.get("task"))
            if before and not measure:
                answers.update({url: was for url, was in before["answers"].items() if url in asked})
            nodes.append({**node, "task": running and running["ID"], "answers": answers, "measure": measure})
        return {"nodes": nodes, "image": service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]}

    def next(self) -> dict[str, Any]:
        """Prove the next node that runs the service's spec."""
        deadline = time.monotonic() + self._options["node_seconds"]
        waiting: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            self._tick()
            service = self._service()
            tasks = self._engine.tasks(self._name)
            told = self._overruled(service, tasks)
            if told:
                return {"outcome": "swarm", "reason": told, "put_back": False, "node": {}}
            nodes = self._nodes(service)
            waiting = [node for node in nodes if node["id"] not in self._options["proven"]]
            if not waiting:
                return {"outcome": "proved", "reason": "", "put_back": False, "node": {}, "left": 0}
            for node in waiting:
                task = current_task(tasks, service, node["id"])
                if task:
                    return self._prove(node, task, tasks, nodes, len(waiting) - 1)
            told = self._first_start_fails(tasks, waiting)
            if told:
                return {"outcome": "swarm", "reason": told, "put_back": False, "node": {}}
            time.sleep(_POLL)
        names = ", ".join(node["hostname"] for node in waiting)
        reason = f"{names} did not run the new version within {self._options['node_seconds']} s. {self._why(waiting)}"
        return {"outcome": "late", "reason": reason, "put_back": self._put_back(), "node": {}}

    def _prove(
        self,
        node: dict[str, Any],
        task: dict[str, Any],
        tasks: list[dict[str, Any]],
        nodes: list[dict[str, Any]],
        left: int,
    ) -> dict[str, Any]:
        others = {t["ID"] for t in tasks if t.get("NodeID") == node["id"]} - {task["ID"]}
        control = self._control(node, nodes, tasks)
        result = proof.prove(
            node["address"],
            self._ports,
            task["ID"],
            others,
            self._before(node["id"]),
            self._options["proof_seconds"],
            control,
            self._tick,
        )
        about = {
            **{key: node[key] for key in ("id", "hostname", "address")},
            "proved_after_seconds": round(time.monotonic() - self._started, 1),
            "requests": result.requests,
            "retries": result.retries,
            "failures": result.failures,
            "instance": result.headers.get("x-lyttle-instance", ""),
            "release": result.headers.get("x-lyttle-release", ""),
            "task": task["ID"],
            "notes": result.notes,
        }
        if result.ok:
            return {"outcome": "proved", "reason": "", "put_back": False, "node": about, "left": left}
        put_back = self._put_back()
        reason = f"{node['hostname']} ({node['address']}): {result.reason}"
        return {"outcome": "failed", "reason": reason, "put_back": put_back, "node": about}

    def _control(self, node: dict[str, Any], nodes: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> str | None:
        """The address of a node to compare with: one that is proven, else one that still runs the old task."""
        known = {n["id"]: n.get("task") for n in self._options["baseline"] if n.get("measure", True)}
        running = {t["ID"] for t in tasks if t["Status"]["State"] == "running" and t["DesiredState"] == "running"}
        others = [n for n in nodes if n["id"] != node["id"]]
        proven = [n["address"] for n in others if n["id"] in self._options["proven"]]
        old = [n["address"] for n in others if known.get(n["id"]) in running]
        return next(iter(proven + old), None)

    def _put_back(self) -> bool:
        """The specs of before, by Swarm's own rollback, when it would lead there. False: the play has to do it."""
        services = []
        for name, wanted in self._options["put_back"].items():
            service = self._engine.service(name)
            if service is None or spec_digest(service["Spec"]) == wanted:
                continue
            if spec_digest(service.get("PreviousSpec") or {}) != wanted:
                return False
            services.append(service)
        self._lock.hold()
        for service in services:
            self._engine.update_service(service, service["Spec"], rollback=True)
        return bool(services)

    def _overruled(self, service: dict[str, Any], tasks: list[dict[str, Any]]) -> str:
        """Who keeps the service from becoming what was asked for, in words; empty while nobody does.

        The spec tells it, and no clock: Swarm's own rollback puts the spec of before in its place."""
        wanted, state = self._options["wanted"], _state(service)
        if not wanted:
            return ""
        why = self._failed(tasks)
        if spec_digest(service["Spec"]) == wanted:
            if state != "paused":
                return ""
            did = f"Swarm stopped the update of {self._name}"
        elif state.startswith("rollback"):
            did = f"Swarm put the old version of {self._name} back"
        else:
            image = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
            did = f"Somebody changed {self._name} in the middle of this deploy; its image is now {image}"
        return ". ".join(filter(None, [did, why or (service.get("UpdateStatus") or {}).get("Message", "")]))

    def _new_failures(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The tasks that failed in this update, newest first."""
        if self._known_tasks is None:
            self._known_tasks = {task["ID"] for task in failures(tasks)}
        return failures(tasks, self._known_tasks)

    def _failed(self, tasks: list[dict[str, Any]]) -> str:
        """What the first task that failed in this update said; empty when none did."""
        for task in reversed(self._new_failures(tasks)):
            if task["ID"] not in self._told:
                names = {node["ID"]: node["Description"]["Hostname"] for node in self._engine.nodes()}
                where = names.get(task.get("NodeID", ""), "a node")
                said = logs_of(self._engine, task)
                self._told[task["ID"]] = f"Its task on {where} ended: {error_of(task)}.{said}"
        return next(iter(self._told.values()), "")

    def _first_start_fails(self, tasks: list[dict[str, Any]], waiting: list[dict[str, Any]]) -> str:
        """A first deployment has no update that Swarm could stop: three ends on one node tell enough."""
        if self._options["baseline"] and any(node.get("task") for node in self._options["baseline"]):
            return ""
        for node in waiting:
            failed = [task for task in self._new_failures(tasks) if task.get("NodeID") == node["id"]]
            if len(failed) >= 3:
                return f"{len(failed)} starts failed on {node['hostname']}. {self._failed(failed)}"
        return ""

    def _why(self, waiting: list[dict[str, Any]]) -> str:
        """What Swarm says of the tasks that were waited for; of one of them also what it wrote."""
        told = []
        tasks = self._engine.tasks(self._name)
        for node in waiting:
            task = next((t for t in tasks if t.get("NodeID") == node["id"] and t["DesiredState"] == "running"), None)
            if task:
                status = task["Status"]
                said = status.get("Err") or status.get("Message", "")
                logs = "" if told else "." + logs_of(self._engine, task)
                told.append(f"{node['hostname']}: {status['State']} ({said}){logs}")
        return "; ".join(told) or "Swarm made no task there: `docker service ps --no-trunc` tells more"

    def finish(self) -> dict[str, Any]:
        """Wait until Swarm has watched the last task for its monitoring time."""
        deadline = time.monotonic() + self._options["node_seconds"]
        while True:
            self._tick()
            service, tasks = self._service(), self._engine.tasks(self._name)
            told = self._overruled(service, tasks)
            if told:
                return {"outcome": "swarm", "reason": told}
            # Just after a change Swarm says nothing of an update, or still tells of the one before.
            behind = [
                node
                for node in self._nodes(service)
                if any(t.get("NodeID") == node["id"] and t["DesiredState"] in ("ready", "running") for t in tasks)
                and current_task(tasks, service, node["id"]) is None
            ]
            if not behind and _state(service) not in _BUSY:
                return {"outcome": "proved", "reason": ""}
            if time.monotonic() > deadline:
                known = self._known(service, [self._instead(node, tasks) for node in behind])
                took = f"the update of {self._name} did not end within {self._options['node_seconds']} s"
                return {"outcome": "late", "reason": f"{took}: {known}"}
            time.sleep(_POLL)

    def settle(self) -> dict[str, Any]:
        """Wait until every node serves what the service says; count what goes wrong meanwhile."""
        deadline = time.monotonic() + self._options["node_seconds"]
        bad, done, reasons, notes = 0, [], [], list[str]()
        while True:
            self._tick()
            service, tasks = self._service(), self._engine.tasks(self._name)
            nodes = self._nodes(service)
            left = [node for node in nodes if node["id"] not in [n["id"] for n in done]]
            if done and not left and _state(service) not in _BUSY:
                return {"outcome": "proved", "reason": "", "nodes": done, "failures": bad, "notes": notes}
            if time.monotonic() > deadline:
                return {"outcome": "late", "reason": self._known(service, reasons), "nodes": done, "failures": bad}
            reasons = []
            for node in left:
                before = self._before(node["id"])
                bad += proof.count_bad(node["address"], self._ports, before)
                task = current_task(tasks, service, node["id"])
                if task is None:
                    reasons.append(self._instead(node, tasks))
                    continue
                others = {t["ID"] for t in tasks if t.get("NodeID") == node["id"]} - {task["ID"]}
                others_back = [n for n in nodes if n["id"] != node["id"] and current_task(tasks, service, n["id"])]
                beside = next((n["address"] for n in others_back), None)
                result = proof.prove(node["address"], self._ports, task["ID"], others, before, 10, beside, self._tick)
                bad += result.failures
                notes += [note for note in result.notes if note not in notes]
                if result.ok:
                    done.append({key: node[key] for key in ("id", "hostname", "address")})
                else:
                    reasons.append(f"{node['hostname']}: {result.reason}")
            time.sleep(_POLL)

    def _known(self, service: dict[str, Any], reasons: list[str]) -> str:
        """What is known of an update that did not end: `reasons` of nodes, Swarm's own word, nodes that are away."""
        told, status = list(reasons), service.get("UpdateStatus") or {}
        if _state(service) not in ("", "completed", "rollback_completed"):
            told.append(_with(f"Swarm calls its update {status['State']}", status.get("Message", "")))
        constraints = service["Spec"]["TaskTemplate"].get("Placement", {}).get("Constraints") or []
        for node in self._engine.nodes():
            if node["Status"]["State"] != "ready" and meets(node, constraints):
                name, state = node["Description"]["Hostname"], node["Status"]["State"]
                told.append(f"{name} is {state}, so what it runs is unknown")
        return "; ".join(told) or "no node that is ready and active may run it"

    def _instead(self, node: dict[str, Any], tasks: list[dict[str, Any]]) -> str:
        """What a node without a current task has instead, as far as Swarm knows."""
        here = [task for task in tasks if task.get("NodeID") == node["id"]]
        running = [task for task in here if task["Status"]["State"] == "running"]
        if running:
            return _with(f"{node['hostname']} still runs another version", running[0]["Spec"]["ContainerSpec"]["Image"])
        if not here:
            return f"{node['hostname']} has no task"
        return _with(f"the task on {node['hostname']} is {here[0]['Status']['State']}", error_of(here[0]))


def _with(text: str, more: str) -> str:
    return f"{text} ({more})" if more else text


def _state(service: dict[str, Any]) -> str:
    """Where the service's update is, by Swarm's word; empty when there is none."""
    return str((service.get("UpdateStatus") or {}).get("State", ""))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": ["nodes", "baseline", "next", "finish", "settle"]},
            "service": {"type": "str", "default": "lyttlenginx_lyttlenginx"},
            "domains": {"type": "list", "elements": "dict", "default": []},
            "baseline": {"type": "list", "elements": "dict", "default": []},
            "proven": {"type": "list", "elements": "str", "default": []},
            "only": {"type": "list", "elements": "str", "default": []},
            "addresses": {"type": "dict", "default": {}},
            "http_port": {"type": "int", "default": 80},
            "https_port": {"type": "int", "default": 443},
            "wanted": {"type": "str", "default": ""},
            "known_tasks": {"type": "list", "elements": "str"},
            "put_back": {"type": "dict", "default": {}},
            "proof_seconds": {"type": "int", "default": 15},
            "node_seconds": {"type": "int", "default": 300},
            "lock_id": {"type": "str", "default": ""},
            "lock_seconds": {"type": "int", "default": 600},
            **ARGUMENT,
        },
        supports_check_mode=True,
    )
    rollout = Rollout(module.params)
    if module.check_mode and module.params["action"] not in ("nodes", "baseline"):
        module.exit_json(skipped=True, changed=False, outcome="proved", reason="", node={}, nodes=[], left=0)
    try:
        result = getattr(rollout, module.params["action"])()
    except Orphaned:
        os._exit(1)  # nobody reads this any more; the next deploy takes over
    except EngineError as exc:
        module.fail_json(msg=str(exc), lock_lost=isinstance(exc, LockLost))
    if result.get("outcome", "proved") != "proved":
        module.fail_json(msg=result["reason"], **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

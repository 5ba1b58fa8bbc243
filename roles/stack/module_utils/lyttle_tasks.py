"""What Swarm's tasks and nodes mean for the node service."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ansible.module_utils.lyttle_engine import Engine

# A task that Swarm replaces ends as "shutdown". One that is "complete" ended by itself, or on the signal that follows a
# failed health check, which Swarm does not tell.
FAILED = ("failed", "rejected", "complete")


def address_of(node: dict[str, Any]) -> str:
    """A node's own address. A manager may call itself 0.0.0.0; its raft address is then the one that others use."""
    told = str(node.get("Status", {}).get("Addr", ""))
    if told in ("", "0.0.0.0", "127.0.0.1"):  # noqa: S104 - compared, not bound
        told = str(node.get("ManagerStatus", {}).get("Addr", "")).rpartition(":")[0].strip("[]")
    return told


def is_up(node: dict[str, Any]) -> bool:
    """Whether Swarm would run a task there."""
    return node["Status"]["State"] == "ready" and node["Spec"]["Availability"] == "active"


def meets(node: dict[str, Any], constraints: list[str]) -> bool:
    """Whether a node meets placement constraints: those on its id, name, role and labels (all that this stack uses)."""
    for constraint in constraints:
        different = "!=" in constraint
        left, _, right = constraint.partition("!=" if different else "==")
        name, wanted = left.strip(), right.strip()
        if name == "node.id":
            value = node["ID"]
        elif name == "node.hostname":
            value = node["Description"]["Hostname"]
        elif name == "node.role":
            value = node["Spec"]["Role"]
        elif name.startswith("node.labels."):
            value = (node["Spec"].get("Labels") or {}).get(name[len("node.labels.") :], "")
        else:
            continue
        if (value.lower() == wanted.lower()) == different:
            return False
    return True


def edge_nodes(nodes: list[dict[str, Any]], spec: dict[str, Any], addresses: dict[str, str]) -> list[dict[str, Any]]:
    """The nodes that the service should run on now: id, hostname, address, by host name."""
    constraints = spec["TaskTemplate"].get("Placement", {}).get("Constraints") or []
    found = [
        {
            "id": node["ID"],
            "hostname": node["Description"]["Hostname"],
            "address": addresses.get(node["Description"]["Hostname"]) or address_of(node),
        }
        for node in nodes
        if is_up(node) and meets(node, constraints)
    ]
    return sorted(found, key=lambda node: node["hostname"])


def _comparable(spec: dict[str, Any]) -> str:
    """A template without what restarts no task: where it may run, and the registry's credentials."""
    spec = json.loads(json.dumps(spec))
    spec.pop("Placement", None)
    spec.pop("Runtime", None)  # said of a service, left out of its tasks
    spec.get("ContainerSpec", {}).pop("PullOptions", None)
    for network in spec.get("Networks") or []:
        network.pop("Aliases", None) if not network.get("Aliases") else None
    return json.dumps(spec, sort_keys=True)


def runs(task: dict[str, Any], service: dict[str, Any]) -> bool:
    """Whether a task was made from the service's present template."""
    return _comparable(task["Spec"]) == _comparable(service["Spec"]["TaskTemplate"])


def current_task(tasks: list[dict[str, Any]], service: dict[str, Any], node_id: str) -> dict[str, Any] | None:
    """The task on a node that runs (and by that is healthy) with the service's present template."""
    for task in tasks:
        if (
            task.get("NodeID") == node_id
            and task["DesiredState"] == "running"
            and task["Status"]["State"] == "running"
            and runs(task, service)
        ):
            return task
    return None


def error_of(task: dict[str, Any]) -> str:
    """Why a task is where it is, as far as Swarm knows."""
    status = task["Status"]
    if status["State"] == "complete":
        return "it was not healthy in time, or ended by itself"
    return str(status.get("Err") or status.get("Message", ""))


def failures(tasks: list[dict[str, Any]], known: Collection[str] = ()) -> list[dict[str, Any]]:
    """Tasks that failed, newest first, but for those with a known id: the clocks of two machines do not compare."""
    return [t for t in tasks if t["Status"]["State"] in FAILED and t["ID"] not in known]


def logs_of(engine: Engine, task: dict[str, Any]) -> str:
    """The last lines of a task that tell a reason, to go after a sentence; of a JSON line its message.

    How it ended in order, and the requests that it answered, stand after the warning that says why it was ended."""
    lines: list[str] = []
    reasons: list[str] = []
    for line in engine.task_logs(task["ID"]):
        try:
            told = json.loads(line)
            level, text = str(told.get("level", "")), f"{told.get('level', '')}: {told['message']}"
        except (ValueError, KeyError, TypeError, AttributeError):
            level, text = "", line
        lines.append(text)
        if level not in ("info", "debug"):
            if text in reasons:
                reasons.remove(text)
            reasons.append(text)
    said = reasons or lines
    return " It said last: " + " | ".join(said[-4:]) if said else " It wrote no log."

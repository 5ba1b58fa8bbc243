#!/usr/bin/python
"""The cluster at a glance: what Swarm says, laid beside what each node says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_status
short_description: Tell the state of a LyttleOps stack
description:
  - Joins Swarm's view (service, nodes, tasks, lock, history) with what M(lyttle_instance) read on each host.
options:
  stack:
    description: The stack.
    type: str
    default: lyttlenginx
  service:
    description: The node service.
    type: str
    default: lyttlenginx_lyttlenginx
  ports:
    description: The service that holds the ports.
    type: str
    default: lyttlenginx_ports
  instances:
    description: What the nodes said.
    type: list
    elements: dict
    default: []
  lock:
    description: The deploy lock.
    type: dict
  newest:
    description: The newest release that succeeded.
    type: dict
  drift:
    description: Differences from the newest release.
    type: list
    elements: str
    default: []
  addresses:
    description: Addresses of nodes by host name, where Swarm's own is not the one that clients use.
    type: dict
    default: {}
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: It only reads.
    support: full
"""

RETURN = r"""
status:
  description: service, nodes, ports, leader, certificates, lock, drift.
  type: dict
  returned: success
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import ARGUMENT, Engine, EngineError, image_version, mode_of, timestamp
from ansible.module_utils.lyttle_tasks import address_of


def about_service(service: dict[str, Any] | None, name: str, newest: dict[str, Any] | None) -> dict[str, Any]:
    """The service's line. The history knows the version of an image that it deployed better than its tag does."""
    if service is None:
        return {}
    spec, update = service["Spec"], service.get("UpdateStatus") or {}
    image = spec["TaskTemplate"]["ContainerSpec"]["Image"]
    return {
        "name": name,
        "image": image,
        "version": newest["version"] if newest and newest["image"] == image else image_version(image),
        "mode": mode_of(spec),
        "replicas": (spec["Mode"].get("Replicated") or {}).get("Replicas"),
        "update_state": update.get("State", ""),
        "update_message": update.get("Message", ""),
    }


def newest_tasks(engine: Engine, service: str) -> dict[str, dict[str, Any]]:
    """For each node id the task that counts: the one that runs, else the newest."""
    chosen: dict[str, dict[str, Any]] = {}
    tasks = engine.tasks(service)
    for task in [t for t in tasks if t["Status"]["State"] == "running"] + tasks:
        chosen.setdefault(task.get("NodeID", ""), task)
    return chosen


def about_task(task: dict[str, Any] | None) -> dict[str, Any] | None:
    """A task's part of a node's line."""
    if task is None:
        return None
    return {
        "id": task["ID"],
        "image": task["Spec"]["ContainerSpec"]["Image"],
        "state": task["Status"]["State"],
        "error": task["Status"].get("Err", ""),
    }


def about_nodes(engine: Engine, options: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes of the Swarm by host name."""
    tasks = newest_tasks(engine, options["service"]) if engine.service(options["service"]) else {}
    said = {each["node_id"]: each for each in options["instances"] if each}
    found = []
    for node in engine.nodes():
        name, status = node["Description"]["Hostname"], (said.get(node["ID"]) or {}).get("status") or {}
        found.append(
            {
                "hostname": name,
                "id": node["ID"],
                "address": options["addresses"].get(name) or address_of(node),
                "role": node["Spec"]["Role"],
                "availability": node["Spec"]["Availability"],
                "state": node["Status"]["State"],
                "edge": (node["Spec"].get("Labels") or {}).get("lyttle.edge") == "true",
                "task": about_task(tasks.get(node["ID"])),
                "version": status.get("version"),
                "instance": status.get("instance_id"),
                "release": (status.get("nginx") or {}).get("release"),
                "ready": status.get("state") == "ready" if status else None,
                "leader": status.get("leader") if status else None,
                "database_ok": (status.get("database") or {}).get("ok") if status else None,
                "api_ok": ((status.get("checks") or {}).get("api") or {}).get("ok") if status else None,
                "revision": status.get("revision"),
            }
        )
    return sorted(found, key=lambda node: node["hostname"])


def about_certificates(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each certificate that a node serves, each that is wanted and not served, and domains that want one and have none;
    with `error` why the last try to get it failed, as far as the leader knows."""
    said = [each for each in instances if each and each.get("status")]
    ledger = {";".join(row["domains"]): row for each in said for row in each.get("ledger", []) if row["wanted"]}
    newest: dict[str, float] = {}
    for each in said:
        for names, until in each.get("certificates", {}).items():
            newest[names] = max(until, newest.get(names, 0))
    found = []
    for names, until in sorted(newest.items()):
        installed = sum(each.get("certificates", {}).get(names) == until for each in said)
        stage = "served on all nodes" if installed == len(said) else "being installed"
        row = ledger.get(names, {})
        found.append(
            {
                "domains": names.split(";"),
                "not_after": timestamp(until),
                "stage": row["stage"] if row.get("error") or row.get("state") == "failed" else stage,
                "error": row.get("error"),
                "installed": installed,
                "nodes": len(said),
            }
        )
    unserved: dict[str, Any] = {"not_after": None, "installed": 0, "nodes": len(said)}
    served = {name for each in found for name in each["domains"]}
    for names, row in sorted(ledger.items()):
        covered = set(row["domains"]) <= served  # by a certificate for other names, until this one is there
        if names not in newest and (row["error"] or not covered):
            stage = f"served by another certificate; the new one: {row['stage']}" if covered else row["stage"]
            found.append({"domains": row["domains"], "stage": stage, "error": row["error"], **unserved})
    known = served | {name for each in found for name in each["domains"]}
    wanted = {entry["domain"] for each in said for entry in each.get("domains", []) if entry.get("ssl_wanted")}
    for name in sorted(wanted):
        if name not in known and f"*.{name.partition('.')[2]}" not in known:
            found.append({"domains": [name], "stage": "not issued yet", "error": None, **unserved})
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "stack": {"type": "str", "default": "lyttlenginx"},
            "service": {"type": "str", "default": "lyttlenginx_lyttlenginx"},
            "ports": {"type": "str", "default": "lyttlenginx_ports"},
            "instances": {"type": "list", "elements": "dict", "default": []},
            "lock": {"type": "dict"},
            "newest": {"type": "dict"},
            "drift": {"type": "list", "elements": "str", "default": []},
            "addresses": {"type": "dict", "default": {}},
            **ARGUMENT,
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    engine = Engine(options["docker_host"])
    try:
        nodes = about_nodes(engine, options)
        holders = newest_tasks(engine, options["ports"]) if engine.service(options["ports"]) else {}
        service = about_service(engine.service(options["service"]), options["service"], options["newest"])
    except EngineError as exc:
        module.fail_json(msg=str(exc))
    lock = options["lock"]
    result = {
        "service": service,
        "nodes": nodes,
        "ports": [
            {
                "hostname": node["hostname"],
                "task_state": holders[node["id"]]["Status"]["State"] if node["id"] in holders else "none",
                "error": holders[node["id"]]["Status"].get("Err", "") if node["id"] in holders else "",
            }
            for node in nodes
            if node["edge"] and service
        ],
        "leader": next((node["hostname"] for node in nodes if node["leader"]), None),
        "certificates": about_certificates(options["instances"]),
        "lock": {key: lock.get(key) for key in ("owner", "reason", "started_at", "expires_at")} if lock else None,
        "drift": options["drift"],
    }
    module.exit_json(changed=False, status=result)


if __name__ == "__main__":
    main()

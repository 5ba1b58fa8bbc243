#!/usr/bin/python
"""Which node of the Swarm a host is, and whether the cluster can do without it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_leaver
short_description: Find the node that is to leave the Swarm, and what speaks against it
description:
  - A host that answers says its node id. One that does not is known by an address of its own, else by its name.
  - Fails when it is not clear which node the host is. Changes nothing.
options:
  id:
    description: The node id that the host says; empty when it does not answer, or is in no Swarm.
    type: str
    default: ""
  outside:
    description: Whether the host says that it is in no Swarm. Only a node that is away can then be what is left of it.
    type: bool
    default: false
  name:
    description: The host's name in the inventory.
    type: str
    required: true
  addresses:
    description: Its addresses there.
    type: list
    elements: str
    default: []
  service:
    description: The node service, whose constraints say where it may run.
    type: str
    default: lyttlenginx_lyttlenginx
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: It only reads.
    support: full
"""

RETURN = r"""
node:
  description: Id, role, availability and state of the node; null when the host is none.
  type: dict
  returned: success
objection:
  description: Why the cluster cannot do without it; empty when it can.
  type: str
  returned: success
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import ARGUMENT, Engine, EngineError
from ansible.module_utils.lyttle_tasks import address_of, is_up, meets


def matching(nodes: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes that the host may be."""
    if options["id"]:
        return [node for node in nodes if node["ID"] == options["id"]]
    if options["outside"]:
        nodes = [node for node in nodes if node["Status"]["State"] != "ready"]
    by_address = [node for node in nodes if address_of(node) in options["addresses"]]
    return by_address or [node for node in nodes if node["Description"]["Hostname"] == options["name"]]


def leaver(nodes: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any] | None:
    """The node that the host is, None for a host that is surely none. Raises EngineError when it is not clear."""
    found = matching(nodes, options)
    if len(found) == 1:
        return found[0]
    if not found and (options["id"] or options["outside"]):
        return None
    seen = "; ".join(
        f"{node['Description']['Hostname']} at {address_of(node) or 'an unknown address'} ({node['Status']['State']}, "
        f"id {node['ID']})"
        for node in found or nodes
    )
    name, addresses = options["name"], ", ".join(options["addresses"]) or "none in the inventory"
    raise EngineError(
        f"{name} does not answer, and {'more than one node' if found else 'no node of the Swarm'} has its address "
        f"({addresses}) or its name: {seen}. Give {name} the swarm_address of its node in the inventory, or remove the "
        "node by its id: docker node demote ID; docker node rm --force ID"
    )


def objection(node: dict[str, Any], nodes: list[dict[str, Any]], service: dict[str, Any] | None) -> str:
    """What speaks against removing the node; empty when nothing does."""
    stayers = [each for each in nodes if each["ID"] != node["ID"]]
    placement = service["Spec"]["TaskTemplate"].get("Placement") or {} if service else {}
    constraints: list[str] = placement.get("Constraints") or []
    serving = [each for each in stayers if is_up(each) and meets(each, constraints)]
    if service and meets(node, constraints) and not serving:
        if any("node.hostname" in constraint for constraint in constraints):
            return (
                "The service may run on this node alone, and nothing would serve without it: `lyttle-ops rollback "
                "--global` brings it to every node, `--scale-one` to another one"
            )
        return "No other node that is ready would serve HTTP; playbooks/teardown.yml removes a whole cluster"
    # Without ManagerStatus a node has no vote, whatever its role: so are lost managers after a --force-new-cluster.
    voting = [each for each in stayers if each.get("ManagerStatus")]
    answering = [each for each in voting if each["ManagerStatus"].get("Reachability") == "reachable"]
    if node.get("ManagerStatus") and len(answering) < len(voting) // 2 + 1:
        return (
            f"{len(answering)} of the {len(voting)} managers that would be left can be reached, which is no majority; "
            "bring them back first"
        )
    return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "default": ""},
            "outside": {"type": "bool", "default": False},
            "name": {"type": "str", "required": True},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "service": {"type": "str", "default": "lyttlenginx_lyttlenginx"},
            **ARGUMENT,
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    engine = Engine(options["docker_host"])
    try:
        nodes = engine.nodes()
        node = leaver(nodes, options)
        told = objection(node, nodes, engine.service(options["service"])) if node else ""
    except EngineError as exc:
        module.fail_json(msg=f"{exc}. Nothing was changed")
    found = node and {
        "id": node["ID"],
        "role": node["Spec"]["Role"],
        "availability": node["Spec"]["Availability"],
        "state": node["Status"]["State"],
    }
    module.exit_json(changed=False, node=found, objection=told)


if __name__ == "__main__":
    main()

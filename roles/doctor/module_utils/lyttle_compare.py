"""What the doctor sees only by looking at all hosts together. Runs on the control machine; standard library."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import Any

from ansible.module_utils.lyttle_checks import SITE, finding

_RESOLVE = 10  # seconds for all names together
_NAMES = 200  # domains asked for at most


def findings(hosts: dict[str, dict[str, Any]], clock_seconds: float, addresses: list[str]) -> list[dict[str, Any]]:
    """All that concerns several hosts; each names its host, or "cluster".

    `hosts`: name -> {reached, clock, address, edge, manager, facts}, with `facts` as the host's own look returned them.
    `addresses`: further ones that the domains may point to, as a load balancer's.
    """
    found = _swarm(hosts) + _clocks(hosts, clock_seconds) + _images(hosts)
    own = {host["address"] for host in hosts.values() if host.get("address")} | set(addresses)
    domains = sorted({name for host in hosts.values() for name in (host.get("facts") or {}).get("domains") or ()})
    return found + _names(domains, own)


def _at(host: str, *arguments: Any) -> dict[str, Any]:
    return {"host": host, **finding(*arguments)}


def _swarm(hosts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    facts = {name: host.get("facts") or {} for name, host in hosts.items()}
    nodes: list[dict[str, Any]] = next((each["nodes"] for each in facts.values() if each.get("nodes")), [])
    if not nodes:
        return []
    found = []
    identities = {each["cluster_id"] for each in facts.values() if each.get("cluster_id")}
    if len(identities) > 1:
        found.append(_at("cluster", "swarm", "the managers belong to different Swarms", "make one leave, then " + SITE))
    managers = [node for node in nodes if node["role"] == "manager"]
    away = [node["hostname"] for node in managers if not node["reachable"]]
    if away:
        left = len(managers) - len(away)
        message = f"{', '.join(away)} cannot be reached as managers; {left} of {len(managers)} remain"
        found.append(_at("cluster", "quorum", message, "bring them back, or replace them (docker node demote)"))
    if len(managers) % 2 == 0:
        message = f"there are {len(managers)} managers: no safer than {len(managers) - 1}"
        found.append(_at("cluster", "quorum", message, "use one, three or five managers", "warning"))
    elif not away:
        survive = f"{(len(managers) - 1) // 2} may fail"
        found.append(_at("cluster", "quorum", f"{len(managers)} managers; {survive}"))
    inventory = {each.get("node_id"): name for name, each in facts.items() if each.get("node_id")}
    for node in nodes:
        name = inventory.get(node["id"], node["hostname"])
        if node["state"] != "ready":
            remedy = "see whether the machine is on and Docker runs; `lyttle-ops node remove` takes it out for good"
            found.append(_at(name, "swarm", f"the Swarm says that it is {node['state']}", remedy))
        if node["id"] not in inventory:
            continue
        edge = bool(hosts[name].get("edge"))
        if edge != node["edge"]:
            message = f"its label lyttle.edge is {'missing' if edge else 'set'}, the inventory says otherwise"
            found.append(_at(name, "labels", message, SITE))
        elif edge and node["availability"] != "active":
            remedy = f"docker node update --availability active {node['hostname']}"
            found.append(_at(name, "swarm", f"its availability is {node['availability']}", remedy, "warning"))
    return found


def _clocks(hosts: dict[str, dict[str, Any]], most: float) -> list[dict[str, Any]]:
    clocks = {name: host["clock"] for name, host in hosts.items() if host.get("clock") is not None}
    if len(clocks) < 2:
        return []
    middle = sorted(clocks.values())[len(clocks) // 2]
    found = [
        _at(
            name,
            "clock",
            f"its clock is {abs(offset - middle):.1f} s {'ahead of' if offset > middle else 'behind'} the others",
            "let a time service keep it right, as systemd-timesyncd or chrony",
        )
        for name, offset in clocks.items()
        if abs(offset - middle) > most
    ]
    return found or [_at("cluster", "clock", f"the clocks of {len(clocks)} hosts agree within {most:g} s")]


def _images(hosts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    image = next((image for host in hosts.values() if (image := (host.get("facts") or {}).get("service_image"))), "")
    if not image:
        return []
    found = []
    for name, host in hosts.items():
        facts = host.get("facts") or {}
        if not host.get("edge") or "images" not in facts:
            continue
        tag, _, digest = image.partition("@")
        known = facts["images"]
        if not any(each.endswith("@" + digest) for each in known) if digest else tag not in known:
            remedy = "see that this host can pull it: `docker pull` it there"
            found.append(_at(name, "image", f"{image} is not on this host", remedy, "warning"))
    return found or [_at("cluster", "image", f"{image} is on every node")]


def _names(domains: list[str], own: set[str]) -> list[dict[str, Any]]:
    asked = [name.replace("*.", "lyttle-doctor.", 1) for name in domains[:_NAMES]]
    if not asked:
        return []
    pool = ThreadPoolExecutor(max_workers=16)
    waiting = {name: pool.submit(_resolve, name) for name in asked}
    found = []
    for name, answer in waiting.items():
        try:
            addresses = answer.result(timeout=_RESOLVE)
        except Late:
            addresses = None
        if addresses is None:
            remedy = "its name servers do not answer: see to them, else its certificate cannot be renewed"
            found.append(_at("cluster", "dns", f"{name} was not resolved within {_RESOLVE} s", remedy, "warning"))
        elif not addresses:
            remedy = "add A (or AAAA) records that lead to the nodes, else its certificate cannot be issued"
            found.append(_at("cluster", "dns", f"{name} does not resolve", remedy))
        elif not addresses & own:
            message = f"{name} leads to {', '.join(sorted(addresses))}, which is no node's address"
            remedy = "point it to the nodes; if that is your load balancer, name it in doctor_addresses"
            found.append(_at("cluster", "dns", message, remedy, "warning"))
    pool.shutdown(wait=False, cancel_futures=True)
    return found or [_at("cluster", "dns", f"{len(asked)} domains lead to the nodes")]


def _resolve(name: str) -> set[str]:
    try:
        return {str(each[4][0]) for each in socket.getaddrinfo(name, 443, proto=socket.IPPROTO_TCP)}
    except (OSError, UnicodeError):
        return set()

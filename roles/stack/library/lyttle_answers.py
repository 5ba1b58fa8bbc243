#!/usr/bin/python
"""Whether nodes answer for domains as another server does that serves them now."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_answers
short_description: Compare what nodes answer for domains with what another server answers
description:
  - Asks the old server and every node for each domain, over HTTP and HTTPS with its name (SNI and Host). A node's
    answer is worse when its class is (a page or redirect, then 4xx, then 5xx, then none).
  - Certificates must be the same, unless the node's own is one that this host trusts for that name. The old server may
    have renewed its certificate since it was imported.
  - An old server that answers for none of the domains is an error, since nothing can be compared with it.
options:
  old:
    description: Address of the old server, or its name.
    type: str
    required: true
  old_name:
    description: What messages call it.
    type: str
    default: the old server
  old_http_port:
    description: Its port for HTTP.
    type: int
    default: 80
  old_https_port:
    description: Its port for HTTPS.
    type: int
    default: 443
  nodes:
    description: Address of each node by its name.
    type: dict
    required: true
  http_port:
    description: The nodes' port for HTTP.
    type: int
    default: 80
  https_port:
    description: The nodes' port for HTTPS.
    type: int
    default: 443
  domains:
    description: Dicts as `lyttle-ops domains` has them. A wildcard stands for one name below it.
    type: list
    elements: dict
    required: true
attributes:
  check_mode:
    description: It only asks.
    support: full
"""

RETURN = r"""
problems:
  description: What a node answers worse, a sentence each.
  type: list
  returned: success
notes:
  description: What differs and is as good.
  type: list
  returned: success
compared:
  description: Number of answers compared.
  type: int
  returned: success
pointing:
  description: Domains that resolve to an address of the old server here.
  type: list
  returned: success
unasked:
  description: Addresses of domains that this host has no route to, so nobody knows who answers there.
  type: list
  returned: success
elsewhere:
  description: Other domains whose address is answered by no node, each with that address.
  type: list
  returned: success
"""

import hashlib
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_proof import TIMEOUT, Ports, ask, who

_AT_ONCE = 8
_ROUTELESS = ("unreachable", "Cannot assign requested address", "Address family not supported")
_RANK = {"1xx": 0, "2xx": 0, "3xx": 0, "4xx": 1, "5xx": 2, "no answer": 3}


class Server(NamedTuple):
    """One that is asked."""

    name: str
    address: str
    ports: Ports


def certificate(server: Server, domain: str) -> str:
    """SHA-256 of the certificate shown for a name; empty without one."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((server.address, server.ports.https), timeout=TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=domain) as channel,
        ):
            return hashlib.sha256(channel.getpeercert(True) or b"").hexdigest()
    except OSError:
        return ""


def trusted(server: Server, domain: str) -> bool:
    """Whether this host trusts the certificate shown for a name."""
    try:
        with (
            socket.create_connection((server.address, server.ports.https), timeout=TIMEOUT) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=domain),
        ):
            return True
    except OSError:
        return False


def compare(old: Server, node: Server, domain: str, tls: bool) -> tuple[list[str], list[str], bool]:
    """(problems, notes, whether the old server answered) of one domain on one node."""
    url = f"{'https' if tls else 'http'}://{domain}/"
    was = ask(old.address, old.ports.https if tls else old.ports.http, domain, tls=tls)
    now = ask(node.address, node.ports.https if tls else node.ports.http, domain, tls=tls)
    problems, notes = [], []
    if _RANK.get(now.kind, 3) > _RANK.get(was.kind, 3):
        problems.append(f"{node.name} answers {url} with {now.detail}, {old.name} with {was.detail}")
    elif now.detail != was.detail and now.kind != "no answer":
        notes.append(f"{node.name} answers {url} with {now.detail}, {old.name} with {was.detail}")
    before = certificate(old, domain) if tls else ""
    if before and certificate(node, domain) != before:
        if trusted(node, domain):
            notes.append(f"{node.name} shows another certificate for {domain} than {old.name}, and it is trusted too")
        else:
            problems.append(f"{node.name} shows another certificate for {domain} than {old.name}, which nobody trusts")
    return problems, notes, was.kind != "no answer"


def targets(domains: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """(name, over TLS?) of what is asked: HTTPS too where an entry wants it, whether a certificate is here or not."""
    names = [
        (str(each["domain"]).replace("*", "lyttle-proof", 1), bool(each.get("ssl_wanted", each.get("ssl"))))
        for each in domains
    ]
    return [(name, tls) for name, wanted in names for tls in ([False, True] if wanted else [False])]


def addresses(name: str) -> set[str]:
    """What a name or an address stands for here; nothing when it does not resolve."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return set()


def whereto(names: list[str], old: str, port: int = 80) -> tuple[list[str], list[str], list[str]]:
    """(names that resolve to the old server, other names of which an address is answered by no node of ours, notes).

    A NAT hides which machine an address leads to; a node tells itself, asked by its address and not by a domain's name.
    An address that cannot be asked from here (IPv6 on a host without) counts when a name has no other."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        known = dict(zip(names, pool.map(addresses, names), strict=True))
        before = addresses(old)
        pointing = [name for name in names if known[name] & before]
        others = [name for name in names if name not in pointing]
        asked = sorted({address for name in others for address in known[name]})
        answers = dict(zip(asked, pool.map(lambda address: who(address, Ports(port)), asked), strict=True))
    strange = {address for address, answer in answers.items() if not answer.headers.get("x-lyttle-task")}
    routeless = {a for a in strange if any(words in answers[a].detail for words in _ROUTELESS)}
    told, notes = [], []
    for name in others:
        counted = (known[name] & strange) - (routeless if known[name] - routeless else set())
        if counted:
            told.append(f"{name} ({min(counted)})")
        skipped = (known[name] & strange) - counted
        notes += [f"{name}: {address} cannot be asked from here" for address in sorted(skipped)]
    return pointing, told, notes


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "old": {"type": "str", "required": True},
            "old_name": {"type": "str", "default": "the old server"},
            "old_http_port": {"type": "int", "default": 80},
            "old_https_port": {"type": "int", "default": 443},
            "nodes": {"type": "dict", "required": True},
            "http_port": {"type": "int", "default": 80},
            "https_port": {"type": "int", "default": 443},
            "domains": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    old = Server(options["old_name"], options["old"], Ports(options["old_http_port"], options["old_https_port"]))
    ports = Ports(options["http_port"], options["https_port"])
    nodes = [Server(name, address, ports) for name, address in sorted(options["nodes"].items())]
    asked = targets(options["domains"])
    names = sorted({name for name, _ in asked})
    wanted = [(node, name, tls) for name, tls in asked for node in nodes]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda each: compare(old, *each), wanted))
    pointing, elsewhere, unasked = whereto(names, options["old"])
    if found and not any(answered for _, _, answered in found):
        module.fail_json(msg=f"{old.name} answers for no domain at {old.address}, so nothing can be compared with it")
    module.exit_json(
        changed=False,
        problems=[line for problems, _, _ in found for line in problems],
        notes=[line for _, notes, _ in found for line in notes],
        compared=len(wanted),
        pointing=pointing,
        elsewhere=elsewhere,
        unasked=unasked,
    )


if __name__ == "__main__":
    main()

"""Proof from outside: fresh requests to a node's own address, compared with what the same node answered before.

A node has proved a task when CONFIRMATIONS fresh connections in a row were answered by exactly that task, which the
header X-Lyttle-Task of `/.well-known/lyttle-ops` names, and when no served domain answers worse than it did before.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

WELL_KNOWN = "/.well-known/lyttle-ops"
CONFIRMATIONS = 5
TIMEOUT = 5.0  # seconds for one request
_BAD_IN_A_ROW = 3
_AT_ONCE = 8
# What is worse than what: a redirect is as good as a page, and anything is better than no answer.
_RANK = {"1xx": 0, "2xx": 0, "3xx": 0, "4xx": 1, "5xx": 2, "no answer": 3}


class Answer(NamedTuple):
    """What one fresh request got."""

    kind: str  # "2xx" … "5xx", or "no answer"
    detail: str  # the status, or why there was no answer
    headers: dict[str, str]  # names in lower case


class Ports(NamedTuple):
    """Where the nodes listen."""

    http: int = 80
    https: int = 443


class Proof(NamedTuple):
    """The outcome for one node."""

    ok: bool
    reason: str
    requests: int
    retries: int
    failures: int
    notes: list[str]
    headers: dict[str, str]


def ask(address: str, port: int, host: str, path: str = "/", tls: bool = False, timeout: float = TIMEOUT) -> Answer:
    """One GET on a fresh connection to `address`, for the name `host` (SNI and Host). Certificates are not verified:
    the lab's and private CAs' count as well; what is compared is whether the handshake still works."""
    connection: http.client.HTTPConnection | None = None
    try:
        plain = socket.create_connection((address, port), timeout=timeout)
        channel: socket.socket = plain
        if tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            try:
                channel = context.wrap_socket(plain, server_hostname=host)
            except BaseException:
                plain.close()
                raise
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        connection.sock = channel
        connection.request("GET", path, headers={"Connection": "close", "User-Agent": "lyttle-ops-proof"})
        response = connection.getresponse()
        response.read(65536)
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(f"{response.status // 100}xx", str(response.status), headers)
    except (OSError, http.client.HTTPException) as exc:
        return Answer("no answer", f"{type(exc).__name__}: {exc}", {})
    finally:
        if connection is not None:
            connection.close()


def who(address: str, ports: Ports) -> Answer:
    """Which task answers on this node."""
    return ask(address, ports.http, f"[{address}]" if ":" in address else address, WELL_KNOWN)


def targets(domains: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """(name, over TLS?) of each request that a list of domains asks for."""
    wanted = []
    for entry in domains:
        name = str(entry["domain"]).replace("*", "lyttle-proof", 1)
        wanted.append((name, False))
        if entry.get("ssl"):
            wanted.append((name, True))
    return wanted


def key(target: tuple[str, bool]) -> str:
    """How a baseline names a target."""
    return f"{'https' if target[1] else 'http'}://{target[0]}/"


def baseline(address: str, ports: Ports, domains: list[dict[str, Any]]) -> dict[str, str]:
    """What each domain answers on this node now, by URL. What gives no answer in time is left out: it proves nothing
    and asking again would take as long."""
    wanted = targets(domains)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda target: _ask_target(address, ports, target), wanted))
    return {
        key(target): answer.kind
        for target, answer in zip(wanted, answers, strict=True)
        if not (answer.kind == "no answer" and "imeout" in answer.detail)
    }


def _ask_target(address: str, ports: Ports, target: tuple[str, bool]) -> Answer:
    name, tls = target
    return ask(address, ports.https if tls else ports.http, name, tls=tls)


def prove(
    address: str,
    ports: Ports,
    task_id: str,
    other_tasks: set[str],
    before: dict[str, str],
    seconds: float,
    control: str | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Proof:
    """Prove that `task_id` serves on `address` within `seconds`, and nothing worse than `before`.

    `other_tasks` may answer for a while (the one being replaced drains). `control` is another node's address: a
    domain that is as bad there has an upstream in trouble, which is not this version's fault.
    """
    deadline = time.monotonic() + seconds
    requests = retries = failures = confirmed = bad = 0
    answer = Answer("no answer", "", {})
    reason = ""
    while confirmed < CONFIRMATIONS:
        tick()
        answer = who(address, ports)
        requests += 1
        seen = answer.headers.get("x-lyttle-task", "")
        if seen == task_id:
            confirmed, bad = confirmed + 1, 0
            continue
        confirmed = 0
        if seen:
            # The one that is replaced, or of a service that is: it drains.
            bad = 0
            retries += 1
            which = "the old task" if seen in other_tasks else "a task that Swarm does not know here,"
            reason = f"{which} {seen[:12]} still answers after {seconds:.0f} s"
        else:
            bad += 1
            failures += 1
            reason = f"http://{address}{WELL_KNOWN} gives no answer ({answer.detail})"
            if answer.headers:
                reason = f"http://{address}{WELL_KNOWN} answers {answer.detail} and does not name its task"
        if bad >= _BAD_IN_A_ROW or time.monotonic() > deadline:
            return Proof(False, reason, requests, retries, failures, [], answer.headers)
        time.sleep(0.2)
    headers = answer.headers
    worse, notes, asked, again, wrong = _compare(address, ports, before, control, deadline, tick)
    return Proof(not worse, worse, requests + asked, retries + again, failures + wrong, notes, headers)


def _compare(
    address: str, ports: Ports, before: dict[str, str], control: str | None, deadline: float, tick: Callable[[], None]
) -> tuple[str, list[str], int, int, int]:
    """(what is worse, notes, requests, retries, failures) of the domains."""
    requests = retries = failures = 0
    notes: list[str] = []
    wanted = [(url.split("/")[2], url.startswith("https")) for url in before]
    suspects = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(wanted), _AT_ONCE):
            tick()
            if time.monotonic() > deadline:
                notes.append(f"{start} of {len(wanted)} addresses were compared in the time for a proof")
                break
            group = wanted[start : start + _AT_ONCE]
            answers = list(pool.map(lambda target: _ask_target(address, ports, target), group))
            requests += len(group)
            suspects += [t for t, a in zip(group, answers, strict=True) if _worse(a, before[key(t)])]
    for target in suspects:
        failures += 1
        url, was = key(target), before[key(target)]
        answer = None
        for _ in range(2):
            time.sleep(0.2)
            answer = _ask_target(address, ports, target)
            retries += 1
            if not _worse(answer, was):
                break
            failures += 1
        else:
            assert answer is not None
            if control and all(_upstream(each, was) for each in (answer, _ask_target(control, ports, target))):
                notes.append(f"{url} is worse than before on every node: its upstream is in trouble")
                failures -= 3
                continue
            return f"{url} answered {was} before and {answer.detail} now", notes, requests + retries, retries, failures
    return "", notes, requests + retries, retries, failures


def _worse(answer: Answer, was: str) -> bool:
    return _RANK.get(answer.kind, 3) > _RANK.get(was, 3)


def _upstream(answer: Answer, was: str) -> bool:
    """Whether something beside this version may be why an answer is worse. An upstream in trouble: NGINX says 5xx then,
    waits with us, or breaks off. An entry that was taken away meanwhile: NGINX knows no such name (TLS alert 112, RFC
    6066 3). A refused connection or another broken handshake is the node's own."""
    said = answer.detail.replace("_", " ").lower()
    others = ("timeout", "timed out", "incompleteread", "unrecognized name")
    return _worse(answer, was) and (answer.kind != "no answer" or any(words in said for words in others))


def count_bad(address: str, ports: Ports, before: dict[str, str]) -> int:
    """How many of a few requests go wrong now: what visitors see while an old version comes back."""
    bad = int(not who(address, ports).headers.get("x-lyttle-task"))
    for url in list(before)[:3]:
        target = (url.split("/")[2], url.startswith("https"))
        bad += int(_worse(_ask_target(address, ports, target), before[url]))
    return bad

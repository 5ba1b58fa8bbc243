"""What runs and what does not: the services beside the nodes, each asked what its clients ask, and the nodes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dnslib import DNSError, DNSRecord

from lyttle_ops.local import credentials, hints, nodes, services, upstream
from lyttle_ops.local.folders import Folders
from lyttle_ops.local.nodes import NodeStatus
from lyttle_ops.local.state import State

_TIMEOUT = 2.0  # seconds for an answer on this machine


@dataclass(frozen=True, slots=True)
class Service:
    """One service; `alive` is its process, `answers` what a client sees."""

    name: str
    where: str  # addresses, for people
    log: Path
    alive: bool
    answers: bool

    @property
    def condition(self) -> str:
        return "running" if self.answers else "does not answer" if self.alive else "not running"


@dataclass(frozen=True, slots=True)
class Health:
    """The cluster at one moment."""

    state: State
    services: list[Service]
    nodes: dict[str, NodeStatus]  # by name

    @property
    def ok(self) -> bool:
        return all(service.answers for service in self.services) and all(node.ready for node in self.nodes.values())

    def way_out(self, folders: Folders) -> str:
        """What a person does about it, commands to copy; empty when nothing is wrong."""
        if self.ok:
            return ""
        if self.state.phase == "starting":
            return "the cluster is starting, or its start was cut off"
        if all(service.answers for service in self.services):
            stopped = [name for name, node in self.nodes.items() if node.pid is None]
            if stopped:
                return "; ".join(f"`{hints.command(folders, 'start', name)}`" for name in stopped)
            waiting = next(name for name, node in self.nodes.items() if not node.ready)
            return f"`{hints.command(folders, 'logs', waiting)}` tells more"
        again = hints.command(
            folders, "up", *self.state.layout.options(), *(["--detach"] if self.state.detached else [])
        )
        return f"start everything anew: `{hints.command(folders, 'down')}` then `{again}`"


def look(folders: Folders, state: State) -> Health:
    """Ask all of them at once; a hung one costs two seconds."""
    layout = state.layout
    database = services.postgres(folders.postgres, layout, credentials.ensure(folders.secrets).database_password)
    ca = services.certificate_authority(folders.ca, layout)
    alive = state.alive()

    def companions_answer() -> bool:
        return _dns_answers(layout.services, layout.dns_port) and upstream.answers(layout.upstream, _TIMEOUT)

    asked: list[tuple[str, str, Path, Callable[[], bool], Callable[[], bool]]] = [
        (
            "PostgreSQL",
            f"{layout.services}:{layout.database_port}",
            database.log,
            database.is_running,
            database.answers,
        ),
        ("CA", ca.directory_url, ca.log, lambda: "ca" in alive, ca.answers),
        (
            "DNS, upstream",
            f"{layout.services}:{layout.dns_port}, {layout.upstream}",
            folders.log("companions"),
            lambda: "companions" in alive,
            companions_answer,
        ),
    ]
    with ThreadPoolExecutor(2 * len(asked) + 1) as pool:
        statuses = pool.submit(nodes.statuses, state, prove=True)
        answers = [(pool.submit(lives), pool.submit(answer)) for *_, lives, answer in asked]
        found = [
            Service(name, where, log, lives.result(), answer.result())
            for (name, where, log, *_), (lives, answer) in zip(asked, answers, strict=True)
        ]
        return Health(state, found, statuses.result())


def _dns_answers(host: str, port: int) -> bool:
    try:
        # TXT: an answer that the server gives without looking at the nodes.
        return bool(DNSRecord.question("status.test", "TXT").send(host, port, timeout=_TIMEOUT))
    except (OSError, DNSError):
        return False

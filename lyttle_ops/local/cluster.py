"""A whole cluster on this machine: started, looked at, broken on purpose, stopped.

Order of a start: PostgreSQL, CA and companions (DNS, demo upstream), then all nodes at once. Order of a stop:
the reverse, nodes first. Whatever an interrupted or failed start began is stopped before the error leaves
`up`. Every process is in cluster.json the moment it exists, so that an `up` that was killed leaves nothing
that the next command cannot find.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.local import credentials, health, hints, listeners, nodes, packages, processes, services
from lyttle_ops.local.ca import CertificateAuthority
from lyttle_ops.local.folders import Folders, create_run_folder, run_folder
from lyttle_ops.local.layout import Layout, NodeLayout
from lyttle_ops.local.processes import Process
from lyttle_ops.local.state import State, StateFile

READY_TIMEOUT = 90.0  # seconds for all nodes to become ready
NODE_GRACE = 30.0  # seconds a node has to finish its requests
SERVICE_GRACE = 5.0
_PATIENCE = 75.0  # seconds `down` waits for an `up` to stop what it started

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """What `down` did; `left` names what is not the cluster's and stays in the wiped folder."""

    ran: bool
    wiped: bool = False
    left: tuple[str, ...] = ()


class AlreadyRunning(LyttleOpsError):
    """A local cluster is already running."""


class NotRunning(LyttleOpsError):
    """No local cluster is running."""


class StartFailed(LyttleOpsError):
    """The local cluster did not start."""


class NodeAlreadyRuns(LyttleOpsError):
    """The node already runs."""


class NodeNotRunning(LyttleOpsError):
    """The node does not run."""


class StopFailed(LyttleOpsError):
    """The local cluster could not be stopped."""


class Interrupted(LyttleOpsError):
    """Interrupted; everything that was started has been stopped."""


class LocalCluster:
    """The local cluster whose files lie in `folders`.

    `say` gets a line of progress at a time. `interrupted` may be set from a signal handler: the start under
    way then ends with Interrupted at its next step. (An exception out of the handler itself could strike
    between a fork and the line that records the child.)
    """

    def __init__(
        self, folders: Folders, say: Say = lambda line: None, interrupted: threading.Event | None = None
    ) -> None:
        self.folders = folders
        self._say = say
        self._interrupted = interrupted or threading.Event()
        self._file = StateFile(folders.state)
        self._children: list[subprocess.Popen[bytes]] = []  # ours, to be reaped

    # -- start ---------------------------------------------------------------------------------------------

    @contextmanager
    def up(
        self,
        layout: Layout,
        *,
        detached: bool = False,
        acme_directory: str | None = None,
        acme_ca_file: Path | None = None,
        ca_delays: bool = False,
        settings: Mapping[str, str] | None = None,
        ready_timeout: float = READY_TIMEOUT,
    ) -> Iterator[State]:
        """Start everything; the body runs with every node ready; at its end all is stopped unless `detached`.

        Raises AlreadyRunning, StartFailed, Interrupted, ConfigurationError for wrong `settings`, and the errors
        of packages, listeners, folders, postgres and ca.
        """
        nodes.check_settings(settings or {})
        packages.require()
        run = run_folder(layout.base)
        self.folders.create()
        with self._file.owning() as owned:
            if not owned:
                raise AlreadyRunning(self._who_runs())
            self._clear_leftovers()
            listeners.check_free(layout.endpoints())
            create_run_folder(run)
            ca = services.certificate_authority(self.folders.ca, layout, ca_delays)
            state = State(
                layout=layout,
                run_folder=run,
                owner=_myself(),
                detached=detached,
                phase="starting",
                acme_directory=acme_directory or ca.directory_url,
                acme_ca_file=acme_ca_file or ca.root,
                settings=dict(settings or {}),
            )
            self._file.write(state)
            kept = False
            try:
                self._start_services(state, ca)
                for node in layout.all_nodes():
                    self._checkpoint()
                    self._launch_node(node)
                self._wait_until_ready(layout.all_nodes(), ready_timeout)
                with self._file.changing():
                    state = replace(self._require_state(), phase="running")
                    self._file.write(state)
                kept = detached
                yield state
            finally:
                if not kept:
                    self._stop_all(self._file.read() or state)

    def _start_services(self, state: State, ca: CertificateAuthority) -> None:
        layout = state.layout
        secrets = credentials.ensure(self.folders.secrets)
        database = services.postgres(self.folders.postgres, layout, secrets.database_password)
        with ThreadPoolExecutor(2) as pool:
            starting = pool.submit(database.start)
            self._launch("companions", services.companions_command(layout), self.folders.state, os.environ)
            ca.start()
            self._record("ca", ca.pid)
            services.keep_roots(ca, self.folders.ca)
            starting.result()
        self._checkpoint()
        secrets.write_database_url(database.url())
        self._say(f"PostgreSQL on {layout.services}:{layout.database_port}")
        if not services.answers(layout.services, layout.upstream_port):
            raise StartFailed(f"the DNS server and the demo upstream do not answer{self.folders.log_end('companions')}")
        self._say(f"CA on {ca.directory_url}, demo upstream on {layout.upstream}")

    def _launch_node(self, node: NodeLayout, again: bool = False) -> None:
        state = self._require_state()
        home, run = self.folders.node(node.name), state.run_folder / node.name
        home.mkdir(exist_ok=True)
        home.chmod(0o750)
        shutil.rmtree(run, ignore_errors=True)  # a tmpfs is empty after a power cut
        run.mkdir(exist_ok=True)
        nodes.forgive_restarts(home)
        environment = nodes.environment(
            node,
            credentials.ensure(self.folders.secrets),
            state_folder=home,
            run_folder=run,
            acme_directory=state.acme_directory,
            acme_ca_file=state.acme_ca_file,
            settings=state.settings,
        )
        self._launch(node.name, nodes.COMMAND, home, environment, append=again)

    def _launch(
        self, name: str, argv: list[str], folder: Path, environment: Mapping[str, str], append: bool = False
    ) -> None:
        log = self.folders.log(name)
        child = processes.launch(argv, log=log, folder=folder, environment=environment, append=append)
        self._children.append(child)
        self._record(name, child.pid)

    def _record(self, name: str, pid: int | None) -> None:
        process = processes.identify(pid) if pid is not None else None
        if process is None:
            raise StartFailed(f"{name} ended at once; see {self.folders.log(name)}")
        with self._file.changing():
            self._file.write(self._require_state().with_process(name, process))

    def _wait_until_ready(self, wanted: list[NodeLayout], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        waiting = {node.name: node for node in wanted}
        began = time.monotonic()
        while waiting:
            self._checkpoint()
            state = self._require_state()
            for name, node in list(waiting.items()):
                if not state.processes[name].is_alive():
                    raise StartFailed(f"node {name} ended before it was ready{self.folders.log_end(name)}")
                if nodes.status_of(state, node).ready and not nodes.ask_ready(node):
                    self._say(f"{name} is ready after {time.monotonic() - began:.1f} s: API {node.api}")
                    del waiting[name]
            if waiting and time.monotonic() > deadline:
                names = ", ".join(waiting)
                raise StartFailed(
                    f"not ready within {timeout:.0f} s: {names}{self.folders.log_end(next(iter(waiting)))}"
                )
            self.reap()
            self._interrupted.wait(0.05)

    def _checkpoint(self) -> None:
        if self._interrupted.is_set():
            raise Interrupted

    # -- look ----------------------------------------------------------------------------------------------

    def runs(self) -> bool:
        """Whether a cluster was started and not brought down, or not wholly."""
        return self._file.read() is not None

    def state(self) -> State:
        """Raises NotRunning when nothing of a cluster is alive."""
        state = self._file.read()
        if state is None or not (state.alive() or state.owner.is_alive()):
            raise NotRunning(
                f"no local cluster is running (its files are in {self.folders.state}); "
                f"start one with `{self._hint('up')}`"
            )
        return state

    def node_statuses(self, state: State) -> dict[str, nodes.NodeStatus]:
        return nodes.statuses(state)

    def health(self) -> health.Health:
        """Services and nodes, each asked. Raises NotRunning."""
        return health.look(self.folders, self.state())

    def status(self) -> dict[str, Any]:
        """The JSON of `local status --json`. Raises NotRunning."""
        state = self.state()
        layout = state.layout
        secrets = credentials.ensure(self.folders.secrets)
        statuses = nodes.statuses(state, prove=True)
        return {
            "database": {"dsn": services.postgres(self.folders.postgres, layout, secrets.database_password).url()},
            "ca": {"directory": state.acme_directory, "root": str(self.folders.ca / services.ROOTS)},
            "admin": {"username": credentials.ADMIN_USERNAME, "password_file": str(secrets.admin_password_file)},
            "upstream": layout.upstream,
            "nodes": [
                {
                    "name": node.name,
                    "api": node.api,
                    "http": node.http,
                    "https": node.https,
                    "pid": statuses[node.name].pid,
                    "leader": statuses[node.name].leader,
                    "ready": statuses[node.name].ready,
                }
                for node in layout.all_nodes()
            ],
        }

    # -- break and mend ------------------------------------------------------------------------------------

    def kill_node(self, name: str) -> Process:
        """SIGKILL to a node's supervisor and all it started. Raises NotRunning, LayoutInvalid, NodeNotRunning."""
        state = self.state()
        state.layout.node_named(name)
        process = state.processes.get(name)
        if process is None or not process.is_alive():
            raise NodeNotRunning(f"{name} does not run; start it with `{self._hint('start', name)}`")
        processes.kill(process)
        return process

    def start_node(self, name: str, wait: bool = True) -> Process:
        """Start a node that does not run, as a person would. Raises NotRunning, LayoutInvalid, NodeAlreadyRuns,
        AddressBusy, StartFailed."""
        state = self.state()
        node = state.layout.node_named(name)
        process = state.processes.get(name)
        if process is not None and process.is_alive():
            raise NodeAlreadyRuns(f"{name} already runs (process {process.pid})")
        self._end_strays(node)  # what it left behind holds its ports
        listeners.check_free(node.endpoints(), patience=5.0)
        self._launch_node(node, again=True)
        if wait:
            self._wait_until_ready([node], READY_TIMEOUT)
        return self._require_state().processes[name]

    # -- stop ----------------------------------------------------------------------------------------------

    def down(self, wipe: bool = False) -> Ended:
        """Stop the cluster, whoever started it; with `wipe` also remove its data.

        Raises StopFailed when an `up` does not end, FolderForeign when `wipe` is asked of a folder that is no
        cluster's (nothing is stopped then), FolderUnusable when data stays.
        """
        if not self.folders.state.is_dir():
            return Ended(ran=False)
        if wipe:
            self.folders.require_ours()
        elif not self.folders.is_ours() and self._file.read() is None:
            return Ended(ran=False)  # not even a lock is left in somebody else's folder
        deadline = time.monotonic() + _PATIENCE
        asked = None
        while True:
            with self._file.owning() as owned:
                if owned:
                    state = self._file.read()
                    ran = asked is not None or (state is not None and bool(state.alive()))
                    if state is not None:
                        self._stop_all(state)
                    return Ended(ran, wiped=wipe, left=tuple(self.folders.wipe()) if wipe else ())
            state = self._file.read()
            if state is not None and state.owner != asked and state.owner != _myself():
                asked = state.owner
                asked.send(signal.SIGTERM)
            if time.monotonic() > deadline:
                raise StopFailed(f"{self._who_runs()}, and it did not stop within {_PATIENCE:.0f} s")
            time.sleep(0.05)

    def _stop_all(self, state: State) -> None:
        """Stop what `state` names; used by the owner of the up lock only."""
        with self._file.changing():  # a `start` under way finishes first
            state = self._file.read() or state
            names = [name for name in state.processes if name not in ("ca", "companions")]
            self._stop(state, names, NODE_GRACE)
            for node in state.layout.all_nodes():
                self._end_strays(node)
            self._stop(state, ["ca", "companions"], SERVICE_GRACE)
            services.certificate_authority(self.folders.ca, state.layout).stop()  # one that was not recorded yet
            secrets = credentials.ensure(self.folders.secrets)
            services.postgres(self.folders.postgres, state.layout, secrets.database_password).stop()
            self.reap()
            shutil.rmtree(state.run_folder, ignore_errors=True)
            with suppress(OSError):  # other clusters of this user
                state.run_folder.parent.rmdir()
            self._file.remove()

    def _stop(self, state: State, names: list[str], grace: float) -> None:
        known = {state.processes[name]: name for name in names if name in state.processes}
        for process in processes.stop(known, grace):
            self._say(f"{known[process]} did not stop within {grace:.0f} s and was killed")

    def _end_strays(self, node: NodeLayout) -> None:
        processes.kill_all(processes.strays(self.folders.node(node.name)))

    def _clear_leftovers(self) -> None:
        """Called with the up lock held: whoever started what is still alive is gone, or meant it to stay."""
        state = self._file.read()
        if state is None:
            return
        alive = state.alive()
        if alive and state.detached and state.phase == "running":
            raise AlreadyRunning(self._who_runs())
        if alive:
            self._say(f"an earlier run was killed and left {', '.join(alive)} running; stopping that first")
        self._stop_all(state)

    def _who_runs(self) -> str:
        state = self._file.read()
        if state is None:
            return f"another command is starting or stopping the cluster in {self.folders.state}"
        how = "detached" if state.detached and state.phase == "running" else f"by process {state.owner.pid}"
        return (
            f"a local cluster is already running at {state.layout.base} (started {how}): look at it with "
            f"`{self._hint('status')}`, stop it with `{self._hint('down')}`"
        )

    # -- parts ---------------------------------------------------------------------------------------------

    def _hint(self, *words: str) -> str:
        return hints.command(self.folders, *words)

    def reap(self) -> None:
        """Let the kernel forget our children that ended."""
        self._children = [child for child in self._children if child.poll() is None]

    def _require_state(self) -> State:
        state = self._file.read()
        if state is None:
            raise NotRunning(f"no local cluster is running; start one with `{self._hint('up')}`")
        return state


def _myself() -> Process:
    me = processes.identify(os.getpid())
    assert me is not None  # this process runs
    return me

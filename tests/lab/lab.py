"""A lab as a whole: what belongs to it, and in which order it comes and goes."""

import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.lab import engine, files, inventory, network, rootfs
from tests.lab.engine import Engine
from tests.lab.host import Host, HostError
from tests.lab.kernel import kernel
from tests.lab.network import Network
from tests.lab.services import ZONE, Services

DEFAULT = "lab"
HOSTS = 3
MEMORY = "1536M"


class LabError(RuntimeError):
    """The lab cannot do what was asked; the message says why and what helps."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a lab was made with: kept in lab.json, so that every command finds the same."""

    name: str
    subnet: str
    hosts: int
    memory: str
    suite: str
    kernel: str


class Lab:
    """Three hosts and what they need around them. `Lab.load` for one that is up, `Lab.up` to make it so."""

    rate = (
        30.0  # requests per second, all hosts together; the guests share this machine with Ansible and the load itself
    )
    tags = "all"  # what of site.yml its hosts need

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.name = plan.name
        self.folder = files.LABS / plan.name
        self.network = Network(files.identity(plan.name), plan.subnet)
        self.hosts = [
            Host(self.folder, self.network, index, kernel=Path(plan.kernel), memory=plan.memory, zone=ZONE)
            for index in range(plan.hosts)
        ]
        self.services = Services(self.folder, self.network, [host.address for host in self.hosts])
        self.inventory = self.folder / "inventory.ini"
        self.zone = ZONE

    # ---- finding and making ------------------------------------------------------------------------------------

    @classmethod
    def load(cls, name: str = DEFAULT) -> "Lab":
        """The lab `name`, whatever its state. Raises LabError when there is none."""
        lab = cls._find(name)
        if lab is None:
            raise LabError(f"there is no lab {name!r}: python -m tests.lab up --name {name}")
        return lab

    @classmethod
    def up(
        cls,
        name: str = DEFAULT,
        *,
        hosts: int = HOSTS,
        memory: str = MEMORY,
        suite: str = rootfs.SUITE,
        fresh: bool = False,
        snapshot: str | None = None,
    ) -> "Lab":
        """Bring up the lab `name` and wait until ssh lets in everywhere.

        A lab that was there keeps its disks, unless `fresh`; a new one gets fresh hosts, or those of `snapshot`.
        When it fails or is interrupted, what it started is gone again. Raises LabError, HostError, CommandFailed.
        """
        files.check_name(name)
        with files.locked(files.CACHE / "locks" / name):
            lab = cls._find(name)
            if lab is not None and (fresh or snapshot):
                lab._remove()
                lab = None
            made = lab is None
            lab = lab or cls._create(name, hosts, memory, suite, snapshot)
            try:
                lab._start()
            except BaseException:
                lab._remove() if made else lab._stop()
                raise
        return lab

    def down(self) -> None:
        """End everything of it and remove its folder: disks, registry, keys. Snapshots stay."""
        with files.locked(files.CACHE / "locks" / self.name):
            self._remove()

    def save(self, snapshot: str) -> None:
        """Shut the hosts down, keep their disks and the registry as `snapshot`, start them again."""
        files.check_name(snapshot)
        target = files.CACHE / "snapshots" / snapshot
        partial = target.with_suffix(".partial")
        with files.locked(files.CACHE / "locks" / self.name), ThreadPoolExecutor() as pool:
            list(pool.map(Host.shut_down, self.hosts))
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for host in self.hosts:
                rootfs.copy_disk(host.disk, partial / f"{host.name}.img")
            for part in ("registry", "ca"):
                shutil.copytree(self.folder / part, partial / part)
            (partial / "lab.json").write_text(json.dumps(asdict(self.plan)))
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            self._start()

    # ---- what tests use ----------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host called `name` (n1, n2, …). Raises LabError."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"the lab {self.name!r} has no host {name!r}")

    def build_image(
        self,
        tag: str,
        *,
        repository: str = "lyttle-ops",
        context: Path = files.CHECKOUT,
        dockerfile: str | None = None,
        build_args: Mapping[str, str] | None = None,
    ) -> str:
        """Build an image and push it to the lab's registry; returns registry/repository@sha256:….

        `dockerfile` is a text, used instead of the Dockerfile in `context`; `FROM` may name what this returned
        before. Raises CommandFailed, EngineFailed.
        """
        with self.engine() as builder:
            return builder.publish(f"{self.services.registry}/{repository}:{tag}", context, dockerfile, build_args)

    def engine(self) -> AbstractContextManager[Engine]:
        """A Docker engine of this machine for as long as the context lasts. Raises EngineFailed, CommandFailed."""
        return engine.running(self.network, self.services.registry)

    @property
    def acme_root(self) -> Path:
        """PEM file of the root that signs what the lab's CA issues; another one after each `up`."""
        return self.services.ca.issuing_root

    def is_up(self) -> bool:
        """Whether everything of it runs."""
        running = self.network.is_up() and all(self.services.running().values())
        return running and all(host.is_running for host in self.hosts)

    # ---- parts -------------------------------------------------------------------------------------------------

    @classmethod
    def _find(cls, name: str) -> "Lab | None":
        try:
            return cls(Plan(**json.loads((files.LABS / name / "lab.json").read_text())))
        except FileNotFoundError:
            return None

    @classmethod
    def _create(cls, name: str, hosts: int, memory: str, suite: str, snapshot: str | None) -> "Lab":
        kept = files.CACHE / "snapshots" / snapshot if snapshot else None
        if kept is not None:
            try:
                plan = Plan(**{**json.loads((kept / "lab.json").read_text()), "name": name})
            except FileNotFoundError:
                raise LabError(f"there is no snapshot {snapshot!r} in {kept.parent}") from None
            if network.is_taken(plan.subnet):
                raise LabError(f"the snapshot's hosts live in {plan.subnet}, which is in use: end that lab first")
        else:
            boots = kernel()
            image = rootfs.image(suite, boots)
            plan = Plan(name, "", hosts, memory, suite, str(boots.program))
        try:
            with files.locked(network.LOCK):
                if not plan.subnet:
                    plan = replace(plan, subnet=network.free_subnet(name))
                lab = cls(plan)
                lab.folder.mkdir(parents=True, exist_ok=True)
                (lab.folder / "lab.json").write_text(json.dumps(asdict(plan)))
                lab.network.up(plan.hosts)
            lab._fill(kept if kept is not None else image, kept)
        except BaseException:
            if plan.subnet:
                cls(plan)._remove()
            raise
        return lab

    def _fill(self, source: Path, kept: Path | None) -> None:
        for name in ("ssh_key", "ssh_key.pub"):
            shutil.copy(files.CACHE / name, self.folder / name)
        key = (files.CACHE / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text("".join(f"{host.address} {key}" for host in self.hosts))
        for host in self.hosts:
            host.create(source if kept is None else source / f"{host.name}.img")
        for part in ("registry", "ca"):
            if kept is not None:
                shutil.copytree(kept / part, self.folder / part)

    def _start(self) -> None:
        if not self.network.is_up():
            self.network.up(self.plan.hosts)  # this machine was booted meanwhile
        self.services.start()
        for host in self.hosts:
            host.start(wait=False)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Host.wait, self.hosts))
        inventory.write(self.folder, self.hosts, self.services)

    def _stop(self) -> None:
        for host in self.hosts:
            host.power_cut()
        with suppress(HostError):
            self.services.stop()
        self.network.down()

    def _remove(self) -> None:
        with _undisturbed():
            self._stop()
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No Ctrl-C, for this process and what it starts: an impatient second one must not leave half a lab."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""What a lab offers its hosts on the bridge: a registry, an ACME CA and a DNS server, each a process of its own."""

import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lyttle_ops.local import processes
from lyttle_ops.local.ca import CertificateAuthority
from tests.lab import detached, files
from tests.lab.network import Network

ZONE = "example.test"  # every name below it leads to the hosts
REGISTRY_PORT = 5000
ACME_PORT, ACME_MANAGEMENT_PORT = 14000, 15000
_START_TIMEOUT = 15.0  # seconds

_REGISTRY = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"}}
"""


class ServiceFailed(RuntimeError):
    """A service of the lab did not start; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process that outlives the command that started it; its pid file says which it is."""

    name: str
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def process(self) -> processes.Process | None:
        """The process, while it runs."""
        return detached.find(self._record)

    def start(self, argv: list[str]) -> None:
        """Start `argv`, unless it runs. Raises ServiceFailed, CommandFailed."""
        if self.process is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log.unlink(missing_ok=True)
            if detached.start(argv, record=self._record, log=self.log, folder=files.CHECKOUT) is None:
                raise ServiceFailed(f"{self.name} ended at once: {self.tail()}")

    def stop(self, grace: float = 10.0) -> None:
        """End it and what it started; SIGKILL after `grace` seconds."""
        detached.stop(self._record, grace)

    def tail(self) -> str:
        """The end of its log."""
        try:
            return self.log.read_text(errors="replace")[-1000:].strip()
        except OSError:
            return ""

    def listens(self, host: str, port: int) -> None:
        """Wait until it accepts connections. Raises ServiceFailed."""
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                socket.create_connection((host, port), 1).close()
            except OSError:
                if self.process is None or time.monotonic() > deadline:
                    raise ServiceFailed(f"{self.name} does not listen on {host}:{port}: {self.tail()}") from None
                time.sleep(0.05)
            else:
                return

    @property
    def _record(self) -> Path:
        return self.folder / f"{self.name}.pid"


class Services:
    """Registry, ACME CA and DNS of a lab; `hosts` are the addresses that every test domain leads to."""

    def __init__(self, folder: Path, network: Network, hosts: list[str]) -> None:
        self.registry = f"{network.gateway}:{REGISTRY_PORT}"
        self.dns = f"{network.gateway}:53"
        self.ca = CertificateAuthority(
            folder / "ca",
            network.gateway,
            port=ACME_PORT,
            management_port=ACME_MANAGEMENT_PORT,
            dns_server=self.dns,
        )
        self._network, self._hosts = network, hosts
        self._registry_folder = folder / "registry"
        self._registry = Daemon("registry", folder)
        self._dns = Daemon("dns", folder)

    def start(self) -> None:
        """Start what does not run. Raises ServiceFailed, CAMissing, CAFailed."""
        self._start_dns()
        self._start_registry()
        self.ca.start()

    def stop(self) -> None:
        """End them; nothing happens to one that does not run."""
        self.ca.stop()
        self._registry.stop()
        self._dns.stop()

    def running(self) -> dict[str, int | None]:
        """Process id of each, None when it does not run."""
        found = {daemon.name: daemon.process for daemon in (self._dns, self._registry)}
        return {"ca": self.ca.pid, **{name: process.pid if process else None for name, process in found.items()}}

    def _start_dns(self) -> None:
        argv = [sys.executable, "-m", "tests.lab.dns", "--listen", self._network.gateway, "--zone", ZONE, *self._hosts]
        self._dns.start(argv)
        self._dns.listens(self._network.gateway, 53)

    def _start_registry(self) -> None:
        self._registry_folder.mkdir(parents=True, exist_ok=True)
        configuration = self._registry_folder / "config.yml"
        configuration.write_text(_REGISTRY.format(folder=self._registry_folder, address=self.registry))
        self._registry.start(["docker-registry", "serve", str(configuration)])
        self._registry.listens(self._network.gateway, REGISTRY_PORT)

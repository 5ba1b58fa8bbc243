"""A real Docker Swarm on this machine in seconds: each node a dockerd with network, mounts and processes of its own.

    with QuickSwarm(folder, nodes=3) as swarm:
        swarm.load(image_tar)
        swarm.manager.docker("service", "create", …)
        swarm.nodes[2].power_cut()
        swarm.nodes[2].start()                 # and back, with its disk

Native speed, unlike the lab's hosts, and less in it: no systemd, and the kernel is this machine's, which may lack IPVS
(no ingress, no virtual addresses: `--endpoint-mode dnsrr`) and NFS. A node's own are /etc, /run and /var/lib. It shares
the lab's bridge, address pool and way out; this machine is `swarm.gateway` for the containers. Needs root.

Nothing outlives the one that started it: a node is a process namespace whose init gets SIGKILL when this process ends,
however it ends, and with it go all its containers, mounts and its network namespace. Bridge, rules, control groups and
the folder of one that was killed are removed by the next QuickSwarm of the same folder.
"""

import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.lab import HostError, files, network, shell
from tests.lab.network import Network
from tests.lab.services import REGISTRY_PORT

_START_TIMEOUT = 60.0  # seconds
_PR_SET_PDEATHSIG = 1
_HOST_FOLDER = "/var/lib/lyttle-ops"  # of every node its own, shared as on a host, so that binds may follow its mounts

# What the init of a node does, in its own namespaces, before and while dockerd runs. It reads one line when the network
# device is there. It waits for its children, whoever started them, so that no container leaves a zombie.
_INIT = """
set -e
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir {host_folder}
mount --bind {folder}/etc /etc
mount --bind {folder}/host {host_folder}
mount --make-rshared {host_folder}
hostname {name}
read go
ip link set lo up
ip address add {address}/24 dev {device}
ip link set {device} up
ip route add default via {gateway}
dockerd --data-root {folder}/data --exec-root {folder}/exec --pidfile {folder}/pid --host unix://{folder}/docker.sock \
    --config-file {folder}/daemon.json --cgroup-parent {group} --mtu {mtu} --dns {gateway} >>{folder}/log 2>&1 &
wait $!
"""


class QuickSwarmFailed(RuntimeError):
    """The swarm cannot be made here; the message says why."""


class Node:
    """One machine of the swarm; `docker` is its command line."""

    def __init__(self, swarm: "QuickSwarm", index: int) -> None:
        self.name = f"n{index + 1}"
        self.address = swarm.network.host(index)
        self.folder = swarm.folder / self.name
        self._swarm = swarm
        self._device = f"{swarm.network.bridge}-{index + 1}"
        self._process: subprocess.Popen[bytes] | None = None

    def docker(self, *words: str, timeout: float = 300, stdin: str | None = None) -> str:
        """Standard output of `docker words…` on this node, without its last line end. Raises CommandFailed."""
        return shell.run(["docker", *words], timeout=timeout, stdin=stdin, **self.environment).rstrip("\n")

    @property
    def python(self) -> Path:
        """Python of this machine inside the node, as Ansible's interpreter there."""
        return self.folder / "python"

    def run(
        self, command: str | Sequence[str], *, timeout: float = 120, check: bool = True, stdin: str | None = None
    ) -> str:
        """Standard output of `command` (a shell line or words) inside the node.

        Raises HostError when it does not end within `timeout` seconds or, unless `check` is off, when it fails."""
        done = self._run(command, timeout, stdin)
        if done.returncode != 0 and check:
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise HostError(f"{self.name}: `{command}` failed with {done.returncode}: {said}")
        return done.stdout

    def succeeds(self, command: str | Sequence[str], *, timeout: float = 120) -> bool:
        """Whether `command` ends well inside the node. Raises HostError after `timeout` seconds."""
        return self._run(command, timeout, None).returncode == 0

    def write(self, target: str, text: str) -> None:
        """Replace the node's file `target`, in /etc, /run or /var/lib, by `text`. Raises HostError."""
        self.run(f"cat > {shlex.quote(target)}", stdin=text)

    def read(self, path: str) -> str:
        """The node's file `path`. Raises HostError."""
        return self.run(["cat", path])

    def _run(
        self, command: str | Sequence[str], timeout: float, stdin: str | None
    ) -> "subprocess.CompletedProcess[str]":
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        try:
            return subprocess.run(
                self._inside(*words),
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env=shell.environment(),
            )
        except subprocess.TimeoutExpired:
            raise HostError(f"{self.name}: `{command}` did not end within {timeout:.0f} s") from None

    def _inside(self, *words: str) -> list[str]:
        assert self._process is not None, f"{self.name} has no power"
        pid = self._process.pid
        spaces = [f"--target={pid}", "--net", "--mount", "--uts", "--ipc", f"--pid=/proc/{pid}/ns/pid_for_children"]
        return ["nsenter", *spaces, "env", *(f"{name}={value}" for name, value in self.environment.items()), *words]

    @property
    def environment(self) -> dict[str, str]:
        """What makes a program speak to this node's engine, and to no configuration of this user's."""
        return {"DOCKER_HOST": f"unix://{self.folder}/docker.sock", "DOCKER_CONFIG": str(self._swarm.folder / "config")}

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start the node, with the disk that it has. Raises QuickSwarmFailed with dockerd's last words."""
        assert not self.is_running
        network_ = self._swarm.network
        (self.folder / "host").mkdir(parents=True, exist_ok=True)
        if not (self.folder / "etc").exists():
            shutil.copytree("/etc", self.folder / "etc", symlinks=True)
        settings = {"insecure-registries": [f"{network_.gateway}:{REGISTRY_PORT}"]}
        (self.folder / "daemon.json").write_text(json.dumps(settings))
        shutil.rmtree(self.folder / "exec", ignore_errors=True)  # of a node that was killed
        (self.folder / "pid").unlink(missing_ok=True)
        script = _INIT.format(
            host_folder=_HOST_FOLDER,
            folder=self.folder,
            name=self.name,
            address=self.address,
            device=self._device + "i",
            gateway=network_.gateway,
            group=self._swarm.group,
            mtu=network.mtu(),
        )
        # Not `ip netns exec`, which hides the cgroup mounts.
        unshare = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*unshare, "sh", "-c", f"echo; {script}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=shell.environment(),
                preexec_fn=_die_with_parent,
                start_new_session=True,  # Ctrl-C is for the tests, which end it
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.readline()  # its namespaces exist
        inside, size = self._device + "i", str(network.mtu())
        shell.run(["ip", "link", "add", self._device, "mtu", size, "type", "veth", "peer", "name", inside, "mtu", size])
        shell.run(["ip", "link", "set", inside, "netns", str(self._process.pid)])
        shell.run(["ip", "link", "set", self._device, "master", network_.bridge, "up"])
        self._process.stdin.write(b"go\n")
        self._process.stdin.close()
        self.python.write_text(f'#!/bin/sh\nexec {shlex.join(self._inside("/usr/bin/python3"))} "$@"\n')
        self.python.chmod(0o755)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until its engine answers. Raises QuickSwarmFailed."""
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                self.docker("version", timeout=10)
                return
            except shell.CommandFailed as exc:
                if not self.is_running or time.monotonic() > deadline:
                    said = (self.folder / "log").read_text(errors="replace")[-2000:]
                    raise QuickSwarmFailed(f"dockerd on {self.name} did not start: {exc}\n{said}") from exc
            time.sleep(0.05)

    def power_cut(self) -> None:
        """Every process of the node is gone at once."""
        process, self._process = self._process, None
        if process is None:
            return
        # Its network device is the last thing of a node to go; the kernel would do so too, a little later.
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        shell.run(["ip", "link", "delete", self._device], check=False)


class QuickSwarm:
    """`nodes` machines, the first `managers` of them managers, everything in `folder` (a short path, not a tmpfs)."""

    def __init__(self, folder: Path, nodes: int = 3, managers: int = 1) -> None:
        self.folder = folder.resolve()
        self.group = f"/lyttle-{files.identity(str(self.folder))}"
        identity = files.identity(str(self.folder))
        with files.locked(network.LOCK):
            Network(identity, "198.18.0.0/24").down()  # by its names alone: of one that was killed
            self._remove_groups()
            self.network = Network(identity, network.free_subnet(identity))
            self.network.up(0)
        self.gateway = self.network.gateway
        self.nodes = [Node(self, index) for index in range(nodes)]
        self._managers = managers

    @property
    def manager(self) -> Node:
        """The first node."""
        return self.nodes[0]

    def __enter__(self) -> "QuickSwarm":
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "config").mkdir(parents=True)
        try:
            for node in self.nodes:
                node.start(wait=False)
            self._each(Node.wait)
            first = self.manager
            first.docker("swarm", "init", "--advertise-addr", first.address)
            for node in self.nodes[1:]:  # managers one after the other: raft takes one at a time
                self.join(node)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def join(self, node: Node) -> None:
        """Make `node`, which is in no Swarm, one of this one."""
        role = "manager" if self.nodes.index(node) < self._managers else "worker"
        token = self.manager.docker("swarm", "join-token", "--quiet", role)
        node.docker("swarm", "join", "--token", token, f"{self.manager.address}:2377")

    def load(self, image: Path) -> None:
        """Give all nodes the images of the tar file `image`."""
        self._each(lambda node: node.docker("load", "--input", str(image)))

    def stop(self) -> None:
        """End it; nothing stays."""
        for node in self.nodes:
            node.power_cut()
        self.network.down()
        self._remove_groups()
        _remove(self.folder)

    def _each(self, work: Callable[[Node], object]) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(work, self.nodes))

    def _remove_groups(self) -> None:
        """Control groups are not part of any namespace; those of dead containers are empty and stay."""
        for root in [*Path("/sys/fs/cgroup").glob(f"*{self.group}"), Path(f"/sys/fs/cgroup{self.group}")]:
            for folder, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):  # a process of it is still ending
                    Path(folder).rmdir()


def _remove(folder: Path) -> None:
    """Remove a folder whose last users were just killed."""
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _die_with_parent() -> None:
    """This process gets SIGKILL when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

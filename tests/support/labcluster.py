"""A cluster on the hosts of a lab or of a quick one, driven as an operator does it: playbooks, `lyttle-ops`, ssh."""

import json
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.lab import Host, HostError, Lab, files, shell
from tests.support.load import Load, Report, WebsocketEnd
from tests.support.quicklab import QuickLab
from tests.support.quickstack import serves
from tests.support.quickswarm import Node
from tests.support.wait import until

NODE, PORTS = "lyttlenginx_lyttlenginx", "lyttlenginx_ports"
DOMAIN = "demo.example.test"
DRAIN = 25.0  # seconds that a node gives requests in flight, websockets among them
EXITS = ['CMD ["sh", "-c", "echo this image is broken; exit 3"]']  # of a Dockerfile: an image that ends at once
Machine: TypeAlias = Host | Node
# Of a test that needs what a quick swarm lacks: systemd, fresh hosts, NFS, PostgreSQL on a host.
on_lab = pytest.mark.parametrize("provisioned", ["lab"], indirect=True)
_PLAYBOOKS = files.CHECKOUT / "playbooks"

# A request to the API of the host it runs on: method, path, token and body as JSON on standard input.
_ASK_API = """
import json, sys, urllib.error, urllib.request
asked = json.load(sys.stdin)
body = None if asked["body"] is None else json.dumps(asked["body"]).encode()
headers = {"Content-Type": "application/json", "Authorization": "Bearer " + asked["token"]}
request = urllib.request.Request("http://127.0.0.1:3003" + asked["path"], body, headers, method=asked["method"])
try:
    with urllib.request.urlopen(request, timeout=15) as answer:
        print(json.dumps({"status": answer.status, "body": json.loads(answer.read() or "null")}))
except urllib.error.HTTPError as exc:
    print(json.dumps({"status": exc.code, "body": exc.read().decode()}))
"""


@dataclass(frozen=True)
class Play:
    """A playbook run: every task that changed something, as (host, task), and its whole output."""

    code: int
    output: str

    @property
    def changed(self) -> list[tuple[str, str]]:
        found, task = [], ""
        for line in self.output.splitlines():
            if heading := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\]", line):
                task = heading[1]
            elif change := re.match(r"changed: \[([\w.-]+)", line):
                found.append((change[1], task))
        return found

    @property
    def recap(self) -> dict[str, int]:
        """Count of changed tasks by host, by Ansible's own account."""
        return {host: int(count) for host, count in re.findall(r"^(\S+)\s*: ok=.*changed=(\d+)", self.output, re.M)}


@dataclass(frozen=True)
class Command:
    """A finished `lyttle-ops … --json`."""

    code: int
    document: dict[str, Any]
    errors: str

    def done(self) -> "Command":
        """Itself when it ended well. AssertionError with what it said."""
        assert self.code == 0, str(self)
        return self

    def __str__(self) -> str:
        return f"exit code {self.code}\n{json.dumps(self.document, indent=1)[:4000]}\n{self.errors[-3000:]}"


@dataclass
class Cluster:
    """What site.yml made of a lab. `image` is the good one, `newer` another good one."""

    lab: Lab | QuickLab
    image: str
    newer: str
    folder: Path
    reports: dict[str, Report] = field(default_factory=dict)
    _token: str = ""

    # -- the operator

    def site(self, timeout: float = 1800) -> Play:
        """site.yml, or what of it the lab's hosts need."""
        return self.play("site", timeout, "--tags", self.lab.tags)

    def play(self, name: str, timeout: float = 1800, *words: str, **variables: Any) -> Play:
        """`ansible-playbook words…` on the lab's inventory; its output grows in the folder of the tests."""
        log = self.folder / f"{name}-{time.time():.0f}.log"
        with log.open("w") as output:
            done = subprocess.run(
                [
                    *(str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.lab.inventory), *words),
                    *("-e", json.dumps({"stack_image": self.image, **variables}), str(_PLAYBOOKS / f"{name}.yml")),
                ],
                cwd=files.CHECKOUT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        return Play(done.returncode, log.read_text())

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """`lyttle-ops words… --json`, under way."""
        return subprocess.Popen(
            [sys.executable, "-m", "lyttle_ops.cli", *words, "--json", "--inventory", str(self.lab.inventory)],
            cwd=files.CHECKOUT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: "subprocess.Popen[str]", timeout: float = 1200) -> Command:
        """The end of what `start` began; it is interrupted after `timeout` seconds."""
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate()
            errors += f"\n(interrupted by the test after {timeout:.0f} s)"
        try:
            document = json.loads(output)
        except ValueError:
            document, errors = {}, f"{output}\n{errors}"
        return Command(process.returncode, document, errors)

    def ops(self, *words: str, timeout: float = 1200) -> Command:
        """`lyttle-ops words… --json`, to its end."""
        return self.finish(self.start(*words), timeout)

    def releases(self) -> list[dict[str, Any]]:
        """The history, newest first."""
        found: list[dict[str, Any]] = self.ops("history").done().document["releases"]
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Of an operator: nothing of this process's own Ansible settings, runs kept in the folder of the tests."""
        clean = {name: value for name, value in shell.environment().items() if not name.startswith("ANSIBLE_")}
        programs = f"{Path(sys.executable).parent}:{clean['PATH']}"
        return {**clean, "PATH": programs, "XDG_STATE_HOME": str(self.folder), "ANSIBLE_NOCOLOR": "1"}

    # -- Swarm

    @property
    def hosts(self) -> list[Host] | list[Node]:
        return self.lab.hosts

    @property
    def addresses(self) -> list[str]:
        return [host.address for host in self.hosts]

    def docker(self, *words: str, timeout: float = 300, stdin: str | None = None) -> str:
        """`docker words…` on the first manager that answers."""
        last: HostError | None = None
        for host in self.lab.hosts:
            if host.is_running:
                try:
                    if host.succeeds("docker info --format '{{.Swarm.ControlAvailable}}' | grep -q true", timeout=30):
                        return host.run(["docker", *words], timeout=timeout, stdin=stdin).strip()
                except HostError as exc:
                    last = exc
        raise AssertionError(f"no manager answers: {last}")

    def tasks(self, service: str = NODE) -> dict[str, str]:
        """Id of the running task by host name."""
        words = ("service", "ps", service, "--no-trunc", "--filter", "desired-state=running")
        lines = self.docker(*words, "--format", "{{.Node}} {{.ID}} {{.CurrentState}}").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines if line.split()[2] == "Running"}

    def container(self, host: Machine, service: str = NODE) -> str:
        """Id of the service's running container on `host`, the newest one. AssertionError when there is none."""
        found = host.run(["docker", "ps", "--quiet", "--filter", f"label=com.docker.swarm.service.name={service}"])
        assert found.strip(), f"{service} does not run on {host.name}"
        return found.split()[0]

    def update_state(self, service: str = NODE) -> str:
        said = self.docker("service", "inspect", "--format", "{{json .UpdateStatus}}", service)
        return str((json.loads(said) or {}).get("State", ""))

    def images(self) -> set[str]:
        """Digests of the images that the nodes' running tasks have."""
        words = ("service", "ps", NODE, "--no-trunc", "--filter", "desired-state=running", "--format", "{{.Image}}")
        return {line.rpartition("@")[2] for line in self.docker(*words).splitlines()}

    def runs(self, image: str) -> bool:
        """Whether all tasks have `image`, one with a digest."""
        return self.images() == {image.rpartition("@")[2]}

    def other(self) -> str:
        """The good image that does not run, for a test that may come before or after any other."""
        return self.newer if self.runs(self.image) else self.image

    def whole(self, timeout: float = 420) -> None:
        """Until every host runs, is ready in the Swarm, and serves over HTTPS with a good certificate.

        AssertionError after `timeout` seconds. Needs nobody's hand: a test that leaves a host down starts it first."""
        until(lambda: len(self.tasks()) == len(self.lab.hosts), timeout, "a running task on each host", every=1)
        until(lambda: len(self.tasks(PORTS)) == len(self.lab.hosts), timeout, "a holder on each host", every=1)
        for host in self.lab.hosts:
            until(lambda host=host: self.serves(host), timeout, f"{host.name} serves {DOMAIN}", every=0.5)

    # -- the API and what is served

    def api(self, method: str, path: str, body: Any = None, host: Machine | None = None) -> Any:
        """The API's answer on `host` (None: the first one that runs). AssertionError with its refusal."""
        asked = host or next(each for each in self.lab.hosts if each.is_running)
        if not self._token and path != "/auth/login":
            password = self.lab.hosts[0].read("/etc/lyttle-ops/secrets/admin_password").strip()
            answer = self.api("POST", "/auth/login", {"username": "admin", "password": password}, asked)
            self._token = answer["access_token"]
        question = {"method": method, "path": path, "token": self._token, "body": body}
        answer = json.loads(asked.run(["python3", "-c", _ASK_API], stdin=json.dumps(question), timeout=60))
        if answer["status"] == 401 and self._token:
            self._token = ""  # it had its time
            return self.api(method, path, body, host)
        assert answer["status"] < 300, f"{method} {path}: {answer}"
        return answer["body"]

    def leader(self) -> Machine:
        """The leader's host, once there is one."""

        def named() -> Machine | None:
            said = self.api("GET", "/cluster/leader")["leader"]
            return self.lab.host(said["node"]) if said else None

        found = until(named, 60, "somebody leads", every=0.5)
        assert found is not None
        return found

    def log_out(self) -> None:
        """Log in anew with the next question: the password, or what it is checked against, is another one now."""
        self._token = ""

    def publish(self, domain: str) -> int:
        """A proxy of `domain` to the upstream, over HTTPS; its id."""
        entry = self.api("POST", "/proxy", {"proxy_pass_host": "http://demo:8080", "domains": domain, "ssl": True})
        return int(entry["id"])

    def start_upstream(self) -> None:
        """The service that DOMAIN leads to."""
        if "upstream" not in self.docker("config", "ls", "--format", "{{.Name}}").split():
            text = (files.CHECKOUT / "tests" / "support" / "upstream.py").read_text()
            self.docker("config", "create", "upstream", "-", stdin=text)
        # On the database's host: the tests cut off, remove and stop the others.
        self.docker(
            *("service", "create", "--detach", "--name", "demo", "--network", "lyttlenginx_upstreams"),
            *("--constraint", f"node.hostname=={self.hosts[0].name}", "--no-healthcheck", "--entrypoint", "python3"),
            *("--endpoint-mode", "dnsrr"),  # a kernel without IPVS has no virtual addresses
            *("--config", "source=upstream,target=/upstream.py", self.image, "/upstream.py", "8080"),
        )

    def certificate(self, host: Machine, domain: str = DOMAIN) -> str:
        """The certificate that `host` serves for `domain`, as PEM. Raises OSError when it serves none."""
        context = ssl.create_default_context(cafile=str(self.lab.acme_root))
        with (
            socket.create_connection((host.address, 443), 5) as plain,
            context.wrap_socket(plain, server_hostname=domain) as connection,
        ):
            return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")

    def serves(self, host: Machine, domain: str = DOMAIN) -> bool:
        """Whether `host` answers for `domain` over HTTPS, with a certificate of the lab's CA. Raises OSError."""
        return serves(host.address, domain, self.lab.acme_root)

    # -- load

    @contextmanager
    def load(self, name: str, rate: float = 0, hosts: Sequence[Machine] | None = None) -> Iterator[Load]:
        """Steady load on `hosts` (None: all), of `rate` requests per second (0: what the lab bears); its report is kept
        under `name`."""
        rate = rate or self.lab.rate
        addresses = [host.address for host in hosts or self.lab.hosts]
        with self.watched_kills(), Load(addresses, DOMAIN, rate, self.lab.acme_root) as load:
            load.wait(int(rate * 5), 120)
            yield load
            load.wait(int(rate * 5), 120)
        self.reports[name] = load.report()
        (self.folder / f"load-{name}.txt").write_text(f"{load.report()}\n")

    @contextmanager
    def watched_kills(self) -> Iterator[None]:
        """Meanwhile each host notes when its containers are told to stop."""
        form = '{{.TimeNano}} {{index .Actor.Attributes "com.docker.swarm.service.name"}} {{.Actor.Attributes.signal}}'
        watch = ["docker", "events", "--filter", "event=kill", "--format", form]
        for host in self.hosts:
            if host.is_running:
                host.run("kill $(cat /run/kills.pid) 2>/dev/null; rm -f /run/kills", check=False)
                host.run(f"setsid {shlex.join(watch)} >/run/kills 2>&1 </dev/null & echo $! >/run/kills.pid")
        yield

    def told_to_stop(self, end: WebsocketEnd) -> float | None:
        """When the last task on the host of `end` before it was told to stop (seconds since 1970)."""
        host = next(each for each in self.lab.hosts if each.address == end.address)
        before = time.time()
        there = float(host.run("date +%s.%N"))
        offset = there - (before + time.time()) / 2
        told = [
            int(words[0]) / 1e9 - offset
            for words in map(str.split, host.read("/run/kills").splitlines())
            if len(words) == 3 and words[1] == NODE and words[2] == "15"
        ]
        return max((moment for moment in told if moment < end.closed), default=None)

    def check_websockets(self, report: Report) -> None:
        """Each websocket that a node ended lived until that node's drain was over. AssertionError names the one."""
        for end in report.websockets:
            told = self.told_to_stop(end)
            assert told is not None, f"nobody told a node on {end.address} to stop, yet a websocket ended: {end}"
            # One that is opened just after the stop may still have got the old task; it has its drain as well.
            assert end.closed - told > DRAIN - 3, f"ended {end.closed - told:.1f} s after its node's stop: {end}"


def refuses(address: str) -> bool:
    """Whether `address` refuses connections to both ports, at once and clearly."""
    for port in (80, 443):
        try:
            socket.create_connection((address, port), 3).close()
        except ConnectionRefusedError:
            continue
        return False
    return True


def provision(lab: Lab | QuickLab, folder: Path) -> Cluster:
    """site.yml on a lab, images in its registry, an upstream, and DOMAIN published. AssertionError with what failed."""
    image = lab.build_image("1.0.0")
    cluster = Cluster(lab, image, variant(lab, image, "1.0.1", "ENV LYTTLE_TEST_VARIANT=newer"), folder)
    if not lab.hosts[0].succeeds(f"docker service inspect {NODE}"):  # a developer's own lab may have it from before
        first = cluster.site(timeout=3600)
        assert first.code == 0, first.output[-4000:]
    if "demo" not in cluster.docker("service", "ls", "--format", "{{.Name}}").split():
        cluster.start_upstream()
    if DOMAIN not in str(cluster.api("GET", "/proxy")):
        cluster.publish(DOMAIN)
    cluster.whole()
    return cluster


def variant(lab: Lab | QuickLab, image: str, tag: str, *lines: str) -> str:
    """An image made from `image` by these lines of a Dockerfile, in the lab's registry."""
    dockerfile = "\n".join([f"FROM {image}", *lines, ""])
    return lab.build_image(tag, context=lab.folder / "ca", dockerfile=dockerfile)

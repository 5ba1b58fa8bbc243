"""The image on a real Docker engine: what it is, its health on good and bad days, its end, what survives it."""

import base64
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.lab.shell import CommandFailed
from tests.support.quickstack import QuickStack
from tests.support.quickswarm import Node
from tests.support.wait import until

MASTER_KEY = base64.b64encode(bytes(range(32))).decode()
LARGEST = 260  # MB unpacked: 80 Debian, 45 nginx and Python, 100 libraries
IMPATIENT = ("--health-start-period", "5s", "--health-interval", "2s", "--health-retries", "2")
CONFINED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--tmpfs", "/run/lyttle-ops:mode=1777,size=64m", "--tmpfs", "/tmp"),
)


class Machine:
    """One engine with the image, and a PostgreSQL that its containers reach."""

    def __init__(self, stack: QuickStack) -> None:
        self.node: Node = stack.manager
        self.image, self.postgres = stack.image, stack.postgres
        self.url = stack.postgres.url().replace("0.0.0.0", stack.swarm.gateway)

    def docker(self, *words: str) -> str:
        return self.node.docker(*words)

    def run(self, name: str, *options: str, url: str | None = None, volume: str | None = None) -> "Container":
        """A node that binds its own ports, as `docker run` alone has it."""
        settings = {
            "NODE_NAME": name,
            "NODE_MACHINE_ID": f"machine of {name}",
            "DATABASE_URL": url or self.url,
            "MASTER_KEY": MASTER_KEY,
            "ACME_DIRECTORY_URL": "https://127.0.0.1:1/dir",
            "API_LISTEN": "0.0.0.0:3003",
            "ADMIN_PASSWORD": "a-password-of-tests",
        }
        words = [word for key, value in settings.items() for word in ("--env", f"{key}={value}")]
        self.docker(
            "run", "--detach", "--name", name, *CONFINED, "--volume", f"{volume or name}:/app/state", *words, *options,
            self.image,
        )  # fmt: skip
        return Container(self, name)


class Container:
    def __init__(self, machine: Machine, name: str) -> None:
        self._machine, self.name = machine, name

    def exec(self, *words: str) -> str:
        return self._machine.docker("exec", self.name, *words)

    def check(self, service: str = "node") -> tuple[bool, list[str]]:
        """Whether healthcheck.sh passes, and its lines that are not ok."""
        try:
            said, healthy = self.exec("healthcheck.sh", service), True
        except CommandFailed as exc:
            said, healthy = str(exc).partition(" failed with 1: ")[2], False
        return healthy, [line for line in said.splitlines() if line.startswith(("note", "FAILED"))]

    def state(self, field: str) -> str:
        return self._machine.docker("inspect", "--format", f"{{{{.State.{field}}}}}", self.name)

    def address(self) -> str:
        return self._machine.docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", self.name)

    def logs(self) -> str:
        return self._machine.docker("logs", self.name)

    def becomes(self, health: str, timeout: float = 150) -> None:
        until(lambda: self.state("Health.Status") == health, timeout, f"{self.name} is {health}", every=0.5)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="lyttle-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL is another user's
        with QuickStack(Path(folder, "image"), nodes=1) as stack:
            yield Machine(stack)


@pytest.fixture
def run(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Callable[..., Container]]:
    """Containers of one test, gone with it, each with a database of its own unless told."""
    made: list[Container] = []

    def make(name: str, *options: str, **named: str | None) -> Container:
        made.append(machine.run(name, *options, **named))
        return made[-1]

    yield make
    for each in made:
        machine.docker("rm", "--force", each.name)


def test_what_the_image_is(machine: Machine) -> None:
    (about,) = json.loads(machine.docker("image", "inspect", machine.image))
    assert about["Size"] / 1e6 < LARGEST
    config = about["Config"]
    assert config["User"] == "lyttle"
    assert config["Entrypoint"] == ["tini", "--"]
    assert config["Cmd"] == ["lyttle-ops", "node"]
    assert config["StopSignal"] == "SIGTERM"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == machine.image.rpartition(":")[2]
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-changed")) == 40
    assert "password" not in json.dumps(config["Env"]).lower()


def test_nothing_in_it_gains_rights_builds_programs_or_runs_ansible(machine: Machine) -> None:
    script = (
        "find / -xdev -type f -perm /6000 2>/dev/null; ls /opt/lyttle-ops/bin | grep -i -e pip -e ansible;"
        "command -v pip pip3 gcc cc make curl ansible; "
        "find /root/.cache /var/lib/apt/lists -type f 2>/dev/null; id -u; id -g"
    )
    assert machine.docker("run", "--rm", "--entrypoint", "sh", machine.image, "-c", script).split() == ["7443", "7443"]


def test_a_node_is_healthy_serves_and_ends_cleanly(machine: Machine, run: Callable[..., Container]) -> None:
    node = run("good", "--publish", f"{machine.node.address}:80:80")
    node.becomes("healthy")
    said = node.exec("healthcheck.sh").splitlines()
    assert [line.split(":")[0] for line in said] == [
        f"ok      {check}" for check in ("app", "NGINX", "NGINX HTTP", "NGINX configuration", "API", "database")
    ]
    # Without root and without a capability, on ports below 1024; files stay where only memory is.
    assert "CapEff:\t0000000000000000" in node.exec("cat", "/proc/1/status")
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(f"http://{machine.node.address}/.well-known/lyttle-ops", timeout=5)
        session.get(f"http://{machine.node.address}/nothing", timeout=5)
    assert (answer.status_code, answer.text) == (200, "ok\n")
    # The access log reaches Docker, though NGINX is not root and opens it anew.
    until(lambda: "/nothing 404" in node.logs(), what="the request is in the log")
    machine.docker("stop", "--time", "45", "good")
    assert node.state("ExitCode") == "0"
    assert node.logs().splitlines()[-1].count("Stopped with code 0") == 1


def test_postgresql_away_is_a_note_and_no_reason_to_be_replaced(
    machine: Machine, run: Callable[..., Container]
) -> None:
    node = run("away")
    node.becomes("healthy")
    machine.postgres.stop("immediate")
    try:
        until(lambda: len(node.check()[1]) == 1, 90, "the health check tells of PostgreSQL")
        healthy, lines = node.check()
        assert healthy, lines
        assert lines[0].startswith("note    database: not reachable: ")
        assert lines[0].endswith("; NGINX serves on without it")
        assert node.state("Health.Status") == "healthy"
        # A successor with the same state starts as well, and serves what was served last.
        successor = run(
            "successor", "--env", "NODE_NAME=away", "--env", "NODE_MACHINE_ID=machine of away", volume="away"
        )
        successor.becomes("healthy")
    finally:
        machine.postgres.start()
    until(lambda: node.check() == (True, []), 60, "PostgreSQL is back")


def test_a_wrong_database_url_never_becomes_healthy_even_with_something_to_serve(
    machine: Machine, run: Callable[..., Container]
) -> None:
    first = run("wrong")
    first.becomes("healthy")
    machine.docker("stop", "--time", "45", "wrong")
    wrong = run("wrong-again", *IMPATIENT, volume="wrong", url=machine.url.replace("@", "x@", 1))
    until(lambda: "NGINX serves" in wrong.logs() or "Serving the last known state" in wrong.logs(), 60)
    healthy, lines = wrong.check()
    assert not healthy
    assert any(line.startswith("FAILED  app: is not ready") for line in lines)
    wrong.becomes("unhealthy")
    # With nothing to serve it ends at once and says why.
    fresh = run("wrong-fresh", url=machine.url.replace("@", "x@", 1))
    until(lambda: fresh.state("Running") == "false", 60)
    assert fresh.state("ExitCode") == "1"
    assert "password authentication failed" in fresh.logs()


def test_a_node_that_hangs_is_unhealthy(machine: Machine, run: Callable[..., Container]) -> None:
    node = run("hangs", *IMPATIENT)
    node.becomes("healthy")
    stop = 'import os, signal; [os.kill(int(p), signal.SIGSTOP) for p in os.listdir("/proc") if p.isdigit() and '
    stop += r'b"bin/lyttle-ops\0node" in open(f"/proc/{p}/cmdline", "rb").read() and p != "1"]'
    node.exec("python3", "-c", stop)
    until(lambda: not node.check()[0], 30, "the check fails")
    assert node.check()[1][0].startswith("FAILED  app: hangs: its status is ")
    node.becomes("unhealthy")


def test_unclean_ends_are_counted_across_containers(machine: Machine, run: Callable[..., Container]) -> None:
    same = ("--env", "NODE_NAME=counted", "--env", "NODE_MACHINE_ID=machine of counted")
    run("counted").becomes("healthy")
    machine.docker("kill", "--signal", "KILL", "counted")
    second = run("counted-2", *same, volume="counted")
    second.becomes("healthy")
    assert second.exec("head", "-1", "/app/state/restart.count") == "1"
    machine.docker("stop", "--time", "45", "counted-2")
    third = run("counted-3", *same, volume="counted")
    third.becomes("healthy")
    assert third.exec("head", "-1", "/app/state/restart.count") == "1"  # a clean end adds nothing


def test_the_health_of_the_holder_is_its_own(machine: Machine, run: Callable[..., Container]) -> None:
    def hold(name: str, *command: str) -> Container:
        machine.docker(
            *("run", "--detach", "--name", name, "--user", "root", "--network", "host", "--read-only"),
            *("--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--cap-add", "SETUID", "--cap-add", "SETGID"),
            *("--volume", "ports:/run/lyttle-ports", "--env", "HTTP_LISTEN=127.0.0.1:8081"),
            *("--env", "HTTPS_LISTEN=127.0.0.1:8444", "--env", "API_LISTEN=127.0.0.1:3004"),
            *("--entrypoint", command[0], machine.image, *command[1:]),
        )
        return Container(machine, name)

    holder = hold("holder", "lyttle-ops", "ports")
    try:
        until(lambda: holder.check("ports") == (True, ["note    ports: no node has them, so clients are refused"]), 30)
        # A container that started and has not taken over must not be healthy by its predecessor's answer.
        starting = hold("starting", "sleep", "600")
        failed = "FAILED  ports: another container's holder answers; this one starts, or was replaced"
        assert starting.check("ports") == (False, [failed])
        machine.docker("stop", "--time", "10", "holder")
        assert machine.docker("inspect", "--format", "{{.State.ExitCode}}", "holder").strip() == "0"
        machine.docker("rm", "holder")
        failed = "FAILED  ports: no holder answers on /run/lyttle-ports/ports.sock: "
        assert starting.check("ports")[1][0].startswith(failed)
    finally:
        machine.docker("rm", "--force", "holder", "starting")

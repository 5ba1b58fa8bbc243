"""The stack of docker-compose.swarm.yml on a quick swarm, with what it needs: PostgreSQL, CA, DNS, an upstream.

    with QuickStack(folder, image_tar, "lyttle-ops:0.1.0") as stack:
        stack.deploy()
        stack.publish("demo.example.test")     # https on every node, from the upstream of load tests
        Load(stack.addresses, "demo.example.test", rate=150, ca=stack.ca, …)

By hand of `docker stack deploy`, without Ansible: what is measured and tested here is the stack, not the roles.
"""

import json
import secrets
import socket
import ssl
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import yaml

from lyttle_ops.local.postgres import PostgresServer
from tests.lab import engine, files, shell
from tests.lab.services import Services
from tests.support import loopback
from tests.support.quickswarm import Node, QuickSwarm
from tests.support.wait import until

STACK = "lyttlenginx"
NODE, PORTS = f"{STACK}_lyttlenginx", f"{STACK}_ports"
_PASSWORD = "a-password-of-tests"


class StackFailed(RuntimeError):
    """An update of the stack went wrong; the message says which and how."""


def build_image(swarm: QuickSwarm, target: Path) -> str:
    """Build the image from this checkout into the tar file `target`; returns its name. Raises CommandFailed."""
    with engine.running(swarm.network, "localhost:5000") as builder:
        shell.run([str(files.CHECKOUT / ".ci" / "image")], timeout=1800, **builder.environment)
        name = builder.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "lyttle-ops").split()[0]
        builder.docker("save", "--output", str(target), name)
    return name


class QuickStack:
    """A quick swarm of `nodes`, all edge nodes, with the image `name` loaded from `image` (None: built from here)."""

    def __init__(self, folder: Path, image: Path | None = None, name: str = "", nodes: int = 3) -> None:
        self.swarm = QuickSwarm(folder, nodes)
        self._image, self.image = image, name
        self.addresses = [node.address for node in self.swarm.nodes]
        self._around = folder.with_name(f"{folder.name}-around")
        self.services = Services(self._around / "services", self.swarm.network, self.addresses)
        self.postgres = PostgresServer(
            self._around / "postgres", "0.0.0.0", loopback.port("0.0.0.0"), secrets.token_hex(8), durable=False
        )
        self._token = ""

    def __enter__(self) -> "QuickStack":
        self.swarm.__enter__()
        try:
            self._around.mkdir(exist_ok=True)
            self._around.chmod(0o755)
            self.services.start()  # DNS too, for whoever builds
            if self._image is None:
                self._image = self._around / "image.tar"
                self.image = build_image(self.swarm, self._image)
            self._start_postgres()
            self.swarm.load(self._image)
            self._label_and_keep_secrets()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self.swarm.stop()
        self.services.stop()
        self.postgres.stop("immediate")
        shell.run(["rm", "-rf", str(self._around)])

    @property
    def manager(self) -> Node:
        return self.swarm.manager

    @property
    def ca(self) -> Path:
        """Root of the certificates that the stack serves."""
        return self.services.ca.issuing_root

    # -- what the stack needs

    def _start_postgres(self) -> None:
        self.postgres.start()
        with (self.postgres.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {self.swarm.network.subnet} scram-sha-256\n")
        with psycopg.connect(self._database_url("127.0.0.1"), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")

    def _database_url(self, host: str) -> str:
        return self.postgres.url().replace("0.0.0.0", host)

    def _label_and_keep_secrets(self) -> None:
        docker = self.manager.docker
        for node in docker("node", "ls", "--quiet").split():
            docker("node", "update", "--label-add", "lyttle.edge=true", node)
        database = self._database_url(self.swarm.gateway)
        for name, value in {
            "database_url": database,
            "database_migration_url": database,
            "master_key": b64encode(secrets.token_bytes(32)).decode(),
            "admin_password": _PASSWORD,
        }.items():
            docker("secret", "create", f"{STACK}_{name}", "-", stdin=value)
        docker("config", "create", f"{STACK}_database_ca", str(self.services.ca.root))
        docker("config", "create", f"{STACK}_acme_ca", str(self.services.ca.root))
        docker("network", "create", "--driver", "overlay", "--attachable", "demo")
        docker("config", "create", "upstream", str(files.CHECKOUT / "tests" / "support" / "upstream.py"))

    # -- the stack

    def stack_file(self) -> dict[str, Any]:
        """docker-compose.swarm.yml, for the CA of these tests."""
        stack: dict[str, Any] = yaml.safe_load((files.CHECKOUT / "docker-compose.swarm.yml").read_text())
        node = stack["services"]["lyttlenginx"]
        node["environment"]["ACME_CA_FILE"] = "/etc/lyttle-ops/acme-ca.pem"
        node["configs"].append({"source": "acme_ca", "target": "/etc/lyttle-ops/acme-ca.pem"})
        stack["configs"]["acme_ca"] = {"external": True, "name": f"{STACK}_acme_ca"}
        node["networks"].append("demo")
        stack["networks"]["demo"] = {"external": True, "name": "demo"}
        return stack

    def deploy(self, stack: dict[str, Any] | None = None, **variables: str) -> None:
        """`docker stack deploy` of `stack` (None: stack_file) with `variables`; returns when all its tasks run."""
        file = self._around / "stack.yml"
        file.write_text(yaml.safe_dump(stack or self.stack_file()))
        words = ["docker", "stack", "deploy", "--resolve-image", "never", "--compose-file", str(file), STACK]
        wanted = {
            "LYTTLE_IMAGE": self.image,
            "LYTTLE_PORTS_IMAGE": self.image,
            "ACME_DIRECTORY_URL": self.services.ca.directory_url,
            "API_LISTEN": "0.0.0.0:3003",  # who asks is not on a node
            "SHARED_DIR": "",
        }
        shell.run(words, **{**self.manager.environment, **wanted, **variables})
        self.settle()

    def remove(self, timeout: float = 120) -> None:
        """`docker stack rm`; returns when none of its containers is left. Its volumes stay."""
        self.manager.docker("stack", "rm", STACK)
        label = f"label=com.docker.stack.namespace={STACK}"
        for node in self.swarm.nodes:
            until(
                lambda node=node: not node.docker("ps", "--quiet", "--filter", label), timeout, "it is gone", every=0.2
            )

    def settle(self, timeout: float = 600) -> None:
        """Until every service of the stack is as it should be and no update is under way; `timeout` in seconds.

        Raises StackFailed, which names an update that failed, and AssertionError after `timeout`."""
        until(self._settled, timeout, "the stack is up", every=0.5)

    def _settled(self) -> bool:
        services = self.manager.docker("stack", "services", "--format", "{{.Name}} {{.Replicas}}", STACK).splitlines()
        for line in services:
            name, replicas = line.split()[:2]
            running, wanted = replicas.split("/")
            if self._update_state(name) not in ("", "completed") or running != wanted or running == "0":
                return False
        return bool(services)

    def _update_state(self, service: str) -> str:
        """ "" before there was any update. Raises StackFailed when one went wrong."""
        said = self.manager.docker("service", "inspect", "--format", "{{json .UpdateStatus}}", service)
        status = json.loads(said) or {}
        state = str(status.get("State", ""))
        if state.startswith("rollback") or state == "paused":
            tasks = self.manager.docker("service", "ps", "--no-trunc", service)
            raise StackFailed(f"the update of {service}: {state}, {status.get('Message')}\n{tasks}")
        return state

    def update(self, service: str, *words: str, timeout: float = 600) -> float:
        """`docker service update`, followed to its end; returns the seconds it took. Raises as settle does."""
        began = time.monotonic()
        self.manager.docker("service", "update", "--detach", "--no-resolve-image", *words, service)
        until(lambda: self._update_state(service), 30, "the update has begun", every=0.2)
        self.settle(timeout)
        return time.monotonic() - began

    # -- a site

    def publish(self, domain: str, timeout: float = 120) -> None:
        """Serve `domain` over HTTPS from the upstream of load tests; returns when every node does."""
        self.manager.docker(
            *("service", "create", "--detach", "--name", "demo", "--network", "demo"),
            *("--endpoint-mode", "dnsrr", "--no-resolve-image", "--no-healthcheck", "--entrypoint", "python3"),
            *("--config", "source=upstream,target=/upstream.py", self.image, "/upstream.py", "8080"),
        )
        entry = {"proxy_pass_host": "http://demo:8080", "domains": domain, "ssl": True}
        until(lambda: self._api("POST", "/proxy", entry), timeout, "the API answers", every=0.5)
        self.wait_served(domain, timeout)

    def wait_served(self, domain: str, timeout: float = 120) -> None:
        """Until every node answers for `domain` over HTTPS; AssertionError after `timeout` seconds."""
        for address in self.addresses:
            until(lambda address=address: serves(address, domain, self.ca), timeout, f"{address} serves {domain}")

    def _api(self, method: str, path: str, body: dict[str, Any]) -> Any:
        if not self._token:
            self._token = "-"
            answer = self._api("POST", "/auth/login", {"username": "admin", "password": _PASSWORD})
            self._token = answer["access_token"]
        request = urllib.request.Request(
            f"http://{self.addresses[0]}:3003{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"},
            method=method,
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            raise AssertionError(f"{method} {path}: {exc.code} {exc.read().decode()}") from exc


def serves(address: str, domain: str, ca: Path) -> bool:
    """Whether the node at `address` answers for `domain` over HTTPS with status 200. Raises OSError."""
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection((address, 443), 5) as plain,
        context.wrap_socket(plain, server_hostname=domain) as connection,
    ):
        connection.sendall(f"GET /up HTTP/1.0\r\nHost: {domain}\r\n\r\n".encode())
        return connection.recv(12).endswith(b"200")

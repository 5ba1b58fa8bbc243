"""What a Lab is to an operator, on a quick swarm: nodes, registry, CA, DNS, an inventory, and a PostgreSQL beside them.

    with QuickLab(folder) as lab:
        cluster = provision(lab, reports)      # tests.support.labcluster
        cluster.ops("deploy", "--image", cluster.newer)

Ansible and `lyttle-ops` run as ever; the connection is local, and the interpreter of each node puts what they run into
it. The nodes are a Swarm already and have no systemd, so the roles docker, swarm, postgres and nfs have no work here.
"""

import secrets
from pathlib import Path
from types import TracebackType

import psycopg
import yaml
from psycopg import sql

from lyttle_ops.local.postgres import PostgresServer
from tests.lab import engine, files, inventory, shell
from tests.lab.network import Network
from tests.lab.services import Services
from tests.support import loopback
from tests.support.quickswarm import Node, QuickSwarm


class QuickLab:
    """Three nodes, all of them managers and edge nodes. Everything of it is in `folder` and a sibling of it."""

    rate = 150.0  # requests per second, all nodes together, beside Ansible and the nodes on this machine
    tags = "stack"  # what of site.yml its nodes need

    def __init__(self, folder: Path) -> None:
        self.swarm = QuickSwarm(folder, nodes=3, managers=3)
        self.hosts: list[Node] = self.swarm.nodes
        self.network: Network = self.swarm.network
        self.folder = folder.with_name(f"{folder.name}-around")
        self.services = Services(self.folder, self.network, [node.address for node in self.hosts])
        self.inventory = self.folder / "inventory.ini"
        self._postgres = PostgresServer(
            self.folder / "postgres", "0.0.0.0", loopback.port("0.0.0.0"), secrets.token_hex(8), durable=False
        )

    def __enter__(self) -> "QuickLab":
        self.swarm.__enter__()
        try:
            self.folder.mkdir(exist_ok=True)
            self.folder.chmod(0o755)  # PostgreSQL is another user's
            self.services.start()
            self._start_postgres()
            for node in self.swarm.manager.docker("node", "ls", "--quiet").split():
                self.swarm.manager.docker("node", "update", "--label-add", "lyttle.edge=true", node)
            self._write_inventory()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; nothing stays."""
        self.swarm.stop()
        self.services.stop()
        self._postgres.stop("immediate")
        shell.run(["rm", "-rf", str(self.folder)])

    def host(self, name: str) -> Node:
        """The node called `name` (n1, n2, …)."""
        return next(node for node in self.hosts if node.name == name)

    def build_image(self, tag: str, *, context: Path = files.CHECKOUT, dockerfile: str | None = None) -> str:
        """As Lab.build_image."""
        with engine.running(self.network, self.services.registry) as builder:
            return builder.publish(f"{self.services.registry}/lyttle-ops:{tag}", context, dockerfile)

    @property
    def acme_root(self) -> Path:
        """Root of the certificates that the CA issues."""
        return self.services.ca.issuing_root

    def database(self, name: str) -> str:
        """URL of a new, empty database called `name`, as this machine and the nodes reach it."""
        with psycopg.connect(self._url(self.network.gateway), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(self.network.gateway, name)

    def _start_postgres(self) -> None:
        self._postgres.start()
        with (self._postgres.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {self.network.subnet} scram-sha-256\n")
        with psycopg.connect(self._url("127.0.0.1"), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")

    def _url(self, host: str, *database: str) -> str:
        return self._postgres.url(*database).replace("0.0.0.0", host)

    def _write_inventory(self) -> None:
        lines = ["[managers]"]
        lines += [
            f"{node.name} ansible_host={node.address} ansible_python_interpreter={node.python}" for node in self.hosts
        ]
        lines += ["", "[workers]", "", "[swarm:children]", "managers", "workers", ""]
        self.inventory.write_text("\n".join(lines))
        variables = {
            **inventory.acme(self.services),
            "ansible_connection": "local",
            "ansible_become": False,  # it is root already
            "ansible_pipelining": True,
            "stack_database_url": self._url(self.network.gateway),
            "stack_update_delay": 8,  # seconds; a node of a quick swarm is proved in less than a host
            "stack_proof_seconds": 5,
        }
        (self.folder / "group_vars").mkdir(exist_ok=True)
        (self.folder / "group_vars" / "all.yml").write_text(yaml.safe_dump(variables, sort_keys=False))

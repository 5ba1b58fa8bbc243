"""restore.yml's way with a database, by its own SQL, under two real nodes: they serve on, then what was restored."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests

from lyttle_ops.local.postgres import PostgresServer
from tests.support.node import NodeProcess, add_proxy
from tests.support.wait import until

_SQL = Path(__file__).parents[2] / "roles" / "stack" / "files"
_REACHED = "a request got as far as its upstream, which is not there"


class Restore:
    """A database named as the roles name it, and PostgreSQL's own programs as the playbook calls them."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.url = server.url("lyttle")
        parts = urlsplit(self.url)
        self._environment = {
            "PATH": os.environ["PATH"],
            "PGHOST": str(parts.hostname),
            "PGPORT": str(parts.port),
            "PGUSER": str(parts.username),
            "PGPASSWORD": str(parts.password),
        }

    def run(self, *words: str, text: str = "") -> str:
        done = subprocess.run(
            words, env=self._environment, input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sql(self, name: str, database: str, **variables: int) -> str:
        told = [f"--set={key}={value}" for key, value in variables.items()]
        words = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1", *told]
        return self.run(*words, f"--dbname={database}", "--file=-", text=(_SQL / f"{name}.sql").read_text())

    def swap(self, dump: Path) -> int:
        """The dump becomes the database; the revision that nodes must come to."""
        present = json.loads(self.sql("restore_present", "lyttle"))
        self.server_does("CREATE DATABASE lyttle_restoring TEMPLATE template0")
        self.run(
            *("pg_restore", "--dbname=lyttle_restoring", "--single-transaction", "--exit-on-error"),
            *("--no-owner", "--no-privileges", str(dump)),
        )
        told = {"revision": int(present["revision"]), "term": int(present["term"])}
        adjusted = json.loads(self.sql("restore_adjust", "lyttle_restoring", **told))
        self.sql("restore_swap", "postgres")
        self.server_does("DROP DATABASE lyttle_replaced WITH (FORCE)")
        assert adjusted["revision"] > told["revision"]
        return int(adjusted["revision"])

    def server_does(self, statement: str) -> None:
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture
def restore(postgres: PostgresServer, template: str) -> Iterator[Restore]:
    made = Restore(postgres)
    made.server_does("DROP DATABASE IF EXISTS lyttle WITH (FORCE)")  # the server's first, which tests leave empty
    made.server_does(f"CREATE DATABASE lyttle TEMPLATE {template}")
    yield made
    for name in ("lyttle", "lyttle_restoring", "lyttle_replaced"):
        made.server_does(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    made.server_does("CREATE DATABASE lyttle")


@pytest.fixture
def nodes(restore: Restore) -> Iterator[list[NodeProcess]]:
    made = [NodeProcess(restore.url, name, NODE_MACHINE_ID=name).start() for name in ("n1", "n2")]
    yield made
    for node in made:
        node.close()


def _serves(node: NodeProcess, domain: str) -> bool:
    """Whether the node knows the domain: then its upstream, which nobody runs, is what fails."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"http://{node.http}/", headers={"Host": domain}, timeout=5).status_code == 502


def _seen(restore: Restore, revision: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(restore.sql("restore_nodes", "lyttle", revision=revision))
    return found


def test_nodes_serve_on_and_then_serve_what_was_restored(
    restore: Restore, nodes: list[NodeProcess], tmp_path: Path
) -> None:
    for node in nodes:
        until(node.ready, 60)
    add_proxy(restore.url, "then.example.test", "http://127.0.0.1:9")
    for node in nodes:
        until(lambda node=node: _serves(node, "then.example.test"), 40)
    dump = tmp_path / "database.dump"
    restore.run("pg_dump", "--format=custom", f"--file={dump}", "lyttle")
    add_proxy(restore.url, "later.example.test", "http://127.0.0.1:9")
    for node in nodes:
        until(lambda node=node: _serves(node, "later.example.test"), 40)
    term = max(node.status()["term"] or 0 for node in nodes)

    revision = restore.swap(dump)

    assert all(_serves(node, "then.example.test") for node in nodes), _REACHED  # without PostgreSQL, too

    def all_back() -> bool:
        seen = _seen(restore, revision)
        return bool(seen["leader"]) and set(seen["nodes"]) == {"n1", "n2"}

    until(all_back, 90, "both nodes serve the restored state and one leads", every=0.5)
    for node in nodes:
        assert _serves(node, "then.example.test")
        assert not _serves(node, "later.example.test")
        until(node.ready, 40)
    # Copies that leaders before the restore wrote to the shared folder are older than what the leader writes now.
    until(lambda: max(node.status()["term"] or 0 for node in nodes) > term, 40, "a term that was not there before")


def test_a_restored_database_of_a_newer_time_does_not_go_back_either(restore: Restore, tmp_path: Path) -> None:
    with psycopg.connect(restore.url, autocommit=True) as connection:
        connection.execute("UPDATE cluster_state SET revision = 70")
        connection.execute("UPDATE leadership SET term = 9")
    dump = tmp_path / "database.dump"
    restore.run("pg_dump", "--format=custom", f"--file={dump}", "lyttle")
    with psycopg.connect(restore.url, autocommit=True) as connection:
        connection.execute("UPDATE cluster_state SET revision = 3")
        connection.execute("UPDATE leadership SET term = 1")
    assert restore.swap(dump) == 71
    assert json.loads(restore.sql("restore_present", "lyttle"))["term"] == 9


def test_a_database_that_is_not_ours_is_seen_as_such(restore: Restore) -> None:
    assert json.loads(restore.sql("restore_present", "postgres")) == {}

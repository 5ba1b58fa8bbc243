"""What changes something says so, and what finds nothing to do says that."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml

from lyttle_ops.local.postgres import PostgresServer
from tests.support.operator import ROOT, Checkout, checkout


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, ["n1"])


def run(work: Checkout, file: str, names: list[str], **variables: object) -> str:
    """The last words of some tasks of a file."""
    tasks = yaml.safe_load((ROOT / "roles/stack/tasks" / file).read_text())
    chosen = [task for task in tasks if task["name"] in names]
    assert len(chosen) == len(names)
    path = {"PATH": f"{work.folder}:/usr/bin:/bin"}
    play = {"hosts": "n1", "gather_facts": False, "environment": path, "vars": variables, "tasks": chosen}
    code, said = work.play([play])
    assert code == 0, said
    return said.rpartition("PLAY RECAP")[2]


@pytest.fixture
def cluster(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """What makes PostgreSQL's own programs use the tests' server, as postgres."""
    parts = urlsplit(postgres.url())
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE postgres SUPERUSER LOGIN PASSWORD 'of-the-test'")
        yield {"PGHOST": str(parts.hostname), "PGPORT": str(parts.port), "PGPASSWORD": "of-the-test"}
        admin.execute("DROP DATABASE IF EXISTS lyttle_restoring WITH (FORCE)")
        admin.execute("DROP ROLE postgres")


def test_databases_that_an_interrupted_restore_left(
    work: Checkout, postgres: PostgresServer, cluster: dict[str, str]
) -> None:
    tasks = ["Look for what an interrupted run left", "Remove it"]
    assert "changed=0" in run(work, "restore_beside.yml", tasks, stack_restore_cluster=cluster)
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE lyttle_restoring")
        assert "changed=1" in run(work, "restore_beside.yml", tasks, stack_restore_cluster=cluster)
        found = admin.execute("SELECT FROM pg_database WHERE datname = 'lyttle_restoring'").fetchall()
    assert found == []


@pytest.mark.parametrize(
    ("says", "changed"),
    [
        ("Status: Downloaded newer image for r.test/lyttle-ops@sha256:1", 1),
        ("Status: Image is up to date for r.test/lyttle-ops@sha256:1", 0),
    ],
)
def test_an_image_that_is_fetched(work: Checkout, says: str, changed: int) -> None:
    (work.folder / "docker").write_text(f"#!/bin/sh\ncase \"$*\" in *--quiet*) echo r.test;; *) echo '{says}';; esac\n")
    (work.folder / "docker").chmod(0o755)
    task = ["Fetch it to the old server's host before that one stops"]
    known = {"stack_old_is_node": True, "stack_old_runs": True, "migrate_old_host": "n1"}
    assert f"changed={changed} " in run(work, "migrate_switch.yml", task, stack_runs={"stdout": "r.test"}, **known)

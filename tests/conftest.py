"""One PostgreSQL server a run; each test that asks for `database` gets a clone of a migrated template."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from lyttle_ops.db import Database
from lyttle_ops.db.migrate import migrate
from lyttle_ops.local.postgres import PostgresServer
from tests.support import loopback
from tests.support.local import LocalCommand

# No example is judged by the clock, and everybody tries the same ones.
settings.register_profile("lyttle", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lyttle")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="lyttle-pg-"))
    folder.chmod(0o755)
    host = loopback.address()
    server = PostgresServer(folder / "postgres", host, loopback.port(host), secrets.token_urlsafe(12), durable=False)
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres: PostgresServer) -> str:
    """Name of a database that holds the newest schema and nothing else."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_lyttle")
    database = Database(postgres.url("template_lyttle"), "template", size=0)
    migrate(database)
    database.close()
    return "template_lyttle"


@pytest.fixture
def database_url(postgres: PostgresServer, template: str) -> Iterator[str]:
    """URL of a fresh, migrated database."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.url(name)
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of a database without a schema."""
    name = f"empty_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url, "test", size=8)
    yield opened
    opened.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failed test shows the ends of its cluster's logs, which are gone afterwards."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, LocalCommand):
                for log in sorted(value.state_folder.glob("logs/*.log")):
                    lines = log.read_text(errors="replace").splitlines()[-40:]
                    report.sections.append((f"end of {log.name}", "\n".join(lines)))
    return report

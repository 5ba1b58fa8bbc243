"""Role postgres: its privileges.sql makes an owner that migrates and an application that can only use rows."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, sql

from lyttle_ops.db import Database
from lyttle_ops.db.migrate import migrate
from lyttle_ops.local.postgres import PostgresServer

STATEMENTS = (Path(__file__).parents[2] / "roles/postgres/files/privileges.sql").read_text()


class Roles:
    """A database with an owner and an application role, mended as the role does it."""

    def __init__(self, server: PostgresServer) -> None:
        mark = secrets.token_hex(4)
        self.name, self.owner, self.app = f"roles_{mark}", f"owner_{mark}", f"app_{mark}"
        self._server = server
        with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
            for role in (self.owner, self.app):
                admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'of-the-test'").format(sql.Identifier(role)))
            admin.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(self.name), sql.Identifier(self.owner))
            )

    def url(self, role: str) -> str:
        return conninfo.make_conninfo(self._server.url(self.name), user=role, password="of-the-test")

    def admin(self) -> psycopg.Connection[tuple[str, ...]]:
        return psycopg.connect(self._server.url(self.name), autocommit=True)

    def mend(self) -> list[str]:
        with self.admin() as admin:
            rows = admin.execute(STATEMENTS.encode(), {"owner": self.owner, "app": self.app}).fetchall()
            for (statement,) in rows:
                admin.execute(statement.encode())
            return [statement for (statement,) in rows]

    def remove(self) -> None:
        with psycopg.connect(self._server.url("postgres"), autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.name)))
            for role in (self.app, self.owner):
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def roles(postgres: PostgresServer) -> Iterator[Roles]:
    made = Roles(postgres)
    made.mend()
    yield made
    made.remove()


def _migrate(roles: Roles) -> None:
    owner = Database(roles.url(roles.owner), "test", size=1)
    migrate(owner)
    owner.close()


def test_nothing_is_left_to_mend_before_and_after_a_migration(roles: Roles) -> None:
    assert roles.mend() == []
    _migrate(roles)
    assert roles.mend() == []


def test_the_application_works_with_its_role(roles: Roles) -> None:
    _migrate(roles)
    app = Database(roles.url(roles.app), "test", size=2)
    assert migrate(app) is False
    with app.connection() as connection:
        connection.execute("SELECT next_revision()")
        connection.execute("INSERT INTO users (username, password_hash) VALUES ('a', 'b')")
        connection.execute("DELETE FROM users")
        connection.execute("SELECT pg_try_advisory_lock(1)")
    app.close()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (a int)",
        "CREATE TEMPORARY TABLE mine (a int)",
        "TRUNCATE users",
        "DROP TABLE users",
        "ALTER TABLE users ADD a int",
        "GRANT SELECT ON users TO PUBLIC",
    ],
)
def test_the_application_can_do_nothing_else(roles: Roles, statement: str) -> None:
    _migrate(roles)
    with psycopg.connect(roles.url(roles.app), autocommit=True) as app:
        try:
            app.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return
        # PostgreSQL answers a GRANT of what one may not grant with a warning.
        assert statement.startswith("GRANT")
    assert roles.mend() == []


@pytest.mark.parametrize(
    ("alteration", "mended"),
    [
        ("GRANT TRUNCATE ON users TO {app}", "REVOKE ALL ON TABLE public.users"),
        ("REVOKE SELECT ON users FROM {app}", "GRANT DELETE, INSERT, SELECT, UPDATE ON TABLE public.users"),
        ("GRANT SELECT ON users TO PUBLIC", "REVOKE ALL ON public.users FROM PUBLIC"),
        ("GRANT {owner} TO {app}", "REVOKE {owner} FROM {app}"),
        ("GRANT CREATE ON SCHEMA public TO {app}", "GRANT USAGE ON SCHEMA public TO {app}"),
        ("ALTER TABLE users OWNER TO CURRENT_USER", "ALTER TABLE public.users OWNER TO {owner}"),
        ("CREATE TABLE restored (a int)", "ALTER TABLE public.restored OWNER TO {owner}"),
        ("GRANT TEMPORARY ON DATABASE {name} TO PUBLIC", "REVOKE ALL ON DATABASE {name} FROM PUBLIC"),
        ("GRANT EXECUTE ON FUNCTION next_revision() TO PUBLIC", "REVOKE ALL ON ROUTINE next_revision() FROM PUBLIC"),
    ],
)
def test_what_was_altered_by_hand_is_mended_and_told(roles: Roles, alteration: str, mended: str) -> None:
    _migrate(roles)
    with roles.admin() as admin:
        admin.execute(alteration.format(**vars(roles)).encode())
    said = roles.mend()
    assert any(mended.format(**vars(roles)) in statement for statement in said), said
    assert roles.mend() == []

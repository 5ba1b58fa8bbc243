"""The log-in that nodes use, on a real PostgreSQL: after a change of passwords it is another one, on any server."""

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import conninfo

from lyttle_ops.local.postgres import PostgresServer
from tests.support.operator import LOCAL, ROOT, Checkout, checkout

DATABASE = "logins"
LOGINS = ("lyttle_app_b", "lyttle_owner_b", "lyttle_app", "lyttle_owner")
PASSWORD = "first-password-of-it"


class Server:
    """The tests' PostgreSQL as the roles see it, and a manager that keeps secrets."""

    def __init__(self, server: PostgresServer, work: Checkout) -> None:
        self.server, self.work, self.kept = server, work, work.folder / "secrets"
        parts = urlsplit(server.url())
        # The roles come in as postgres by the host's socket; the tests' server has a password instead.
        login = {"login_host": parts.hostname, "login_user": parts.username, "login_password": parts.password}
        (work.folder / "roles").rmdir()
        shutil.copytree(ROOT / "roles", work.folder / "roles", ignore=shutil.ignore_patterns("__pycache__"))
        for path in (work.folder / "roles/postgres/tasks").iterdir():
            text = path.read_text()
            for indent in ("    ", "        "):
                lines = "".join(f"{indent}{name}: {value}\n" for name, value in login.items())
                text = text.replace(f"{indent}login_unix_socket: /var/run/postgresql\n", lines)
            path.write_text(text.replace("    login_user: postgres\n", ""))
        (work.folder / "inventory.ini").write_text(
            f"[managers]\nn1 {LOCAL}\n[postgres]\ndb {LOCAL} postgres_port={server.port}\n"
        )

    def play(self, *arguments: str) -> str:
        """The secrets' and the database's part of site.yml; what is said at its end."""
        return self.run([("managers", "stack", "secrets.yml"), ("db", "postgres", "database.yml")], *arguments)

    def run(self, parts: list[tuple[str, str, str]], *arguments: str, code: int = 0, **variables: object) -> str:
        """The recap, or with a `code` other than 0 all that was said."""
        plays = [
            {
                "hosts": hosts,
                "gather_facts": False,
                "vars": variables,
                "tasks": [{"ansible.builtin.import_role": {"name": role, "tasks_from": file}}],
            }
            for hosts, role, file in parts
        ]
        given = ["-e", f"postgres_database={DATABASE}", "-e", f"stack_secrets_folder={self.kept}", *arguments]
        ended, said = self.work.play(plays, *given, ANSIBLE_ROLES_PATH=str(self.work.folder / "roles"))
        assert ended == code, said
        return said if code else said.rpartition("PLAY RECAP")[2]

    def keep(self, in_use: str, **values: str) -> None:
        """What the manager keeps; `in_use`: the end of the log-ins' names."""
        same = {"database_app_password": PASSWORD, "database_owner_password": PASSWORD, "master_key": "k"}
        logins = {f"database_{name}_login": f"lyttle_{name}{in_use}" for name in ("app", "owner")}
        self.kept.mkdir()
        for name, value in {**same, **logins, "admin_password": "a", **values}.items():
            (self.kept / name).write_text(value + "\n")

    def connect(self, login: str, password: str = PASSWORD) -> "psycopg.Connection[tuple[str, str]]":
        return psycopg.connect(conninfo.make_conninfo(self.server.url(DATABASE), user=login, password=password))

    def remove(self) -> None:
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            for each in LOGINS:
                admin.execute(f"DROP ROLE IF EXISTS {each}")


@pytest.fixture
def server(postgres: PostgresServer, tmp_path: Path) -> Iterator[Server]:
    made = Server(postgres, checkout(tmp_path, []))
    yield made
    made.remove()


@pytest.mark.timeout(400)
def test_a_new_server_knows_the_log_ins_of_a_cluster_that_changed_its_passwords(server: Server) -> None:
    server.keep("_b")
    server.play()
    for login, role in (("lyttle_app_b", "lyttle_app"), ("lyttle_owner_b", "lyttle_owner")):
        with server.connect(login) as connection:
            assert connection.execute("SELECT session_user, current_user").fetchone() == (login, role)
    assert server.play().count("changed=0") == 2  # the database's host, the manager


@pytest.mark.timeout(400)
@pytest.mark.parametrize("in_use", ["", "_b"])
def test_a_password_that_is_changed_in_the_vault_is_that_of_each_log_in(server: Server, in_use: str) -> None:
    new = secrets.token_hex(20)
    server.keep(in_use)
    with psycopg.connect(server.server.url("postgres"), autocommit=True) as admin:
        for login in LOGINS:
            admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{PASSWORD}'")
    server.play("-e", f"postgres_app_password={new}", "-e", f"postgres_owner_password={new}")
    for login in LOGINS:
        server.connect(login, new).close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            server.connect(login, PASSWORD)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("in_use", "other"), [("", "_b"), ("_b", "")])
def test_log_ins_keep_their_passwords_while_a_change_is_unfinished(server: Server, in_use: str, other: str) -> None:
    new = secrets.token_hex(20)
    server.keep(in_use, database_app_password_new=new, database_owner_password_new=new)
    passwords = {f"lyttle_{name}{in_use}": PASSWORD for name in ("app", "owner")}
    passwords |= {f"lyttle_{name}{other}": new for name in ("app", "owner")}  # nodes come with it already
    with psycopg.connect(server.server.url("postgres"), autocommit=True) as admin:
        for login, password in passwords.items():
            admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{password}'")
        for name in ("app", "owner"):
            admin.execute(f"GRANT lyttle_{name} TO lyttle_{name}_b")
    server.play()
    refused = server.run([("managers", "stack", "secrets.yml")], "-e", "postgres_app_password=of-the-vault", code=2)
    assert "A change of the database passwords is unfinished" in refused
    for login, password in passwords.items():
        server.connect(login, password).close()


@pytest.mark.timeout(400)
def test_a_password_that_an_interrupted_change_brought_is_gone_after_the_next(server: Server) -> None:
    """Whoever rotates because one leaked must not be told that it is done while that one opens the database."""
    leaked, before = secrets.token_hex(20), PASSWORD
    names = ("database_app_password", "database_owner_password")
    # The change before ended after "Keep them": the nodes use it, and the managers still keep it as the new one.
    server.keep("_b", **{name + end: leaked for name in names for end in ("", "_new")})
    with psycopg.connect(server.server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {DATABASE}")
        for name in ("app", "owner"):
            admin.execute(f"CREATE ROLE lyttle_{name} LOGIN PASSWORD '{before}'")
            admin.execute(f"CREATE ROLE lyttle_{name}_b LOGIN PASSWORD '{leaked}' IN ROLE lyttle_{name}")
    # Without a Swarm it ends where it would bring them to the nodes.
    parts = [("managers", "stack", "rotate_read.yml"), ("n1", "stack", "rotate_database.yml")]
    said = server.run(parts, code=2)
    assert "Make the other log-ins" in said
    for name in ("app", "owner"):
        new = (server.kept / f"database_{name}_password_new").read_text().strip()
        assert new != leaked
        server.connect(f"lyttle_{name}", new).close()  # the nodes move here
        server.connect(f"lyttle_{name}_b", leaked).close()  # in use till then
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            server.connect(f"lyttle_{name}", before)


@pytest.mark.timeout(400)
def test_a_change_of_passwords_makes_the_other_log_in(server: Server) -> None:
    new = secrets.token_hex(20)
    with psycopg.connect(server.server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE lyttle_app LOGIN PASSWORD '{PASSWORD}'")
        admin.execute(f"CREATE DATABASE {DATABASE}")
    login = {"role": "lyttle_app", "login": "lyttle_app_b", "password": "database_app_password_new"}
    made = {"values": {"database_app_password_new": new}}
    server.run([("n1", "stack", "rotate_login.yml")], stack_login=login, stack_new=made)
    with server.connect("lyttle_app_b", new) as connection:
        assert connection.execute("SELECT session_user, current_user").fetchone() == ("lyttle_app_b", "lyttle_app")
    server.connect("lyttle_app").close()

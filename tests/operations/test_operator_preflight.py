"""PostgreSQL or the shared folder away: a deploy is refused, with reason and remedy; a rollback goes on and says so."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support import loopback
from tests.support.fake_engine import fake_engine
from tests.support.operator import LOCAL, ROOT, Checkout, checkout, tell

RELEASE = {"release": {"number": 7, "version": "1.2.3"}, "nodes": [], "warnings": "{{ stack_warnings }}"}


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    """The looks and the judgement of the real roles, without a Swarm."""
    made = checkout(tmp_path)
    (made.folder / "roles").rmdir()
    (made.folder / "roles").symlink_to(ROOT / "roles")
    for name in ("deploy", "rollback"):
        look = {"ansible.builtin.import_role": {"name": "doctor", "tasks_from": "needs.yml"}}
        judge: dict[str, object] = {"ansible.builtin.import_role": {"name": "stack", "tasks_from": "needs.yml"}}
        if name == "rollback":
            judge["vars"] = {"stack_preflight": False}
        plays = [
            {"hosts": "swarm", "gather_facts": False, "tasks": [tell(outcome="refused"), look]},
            {"hosts": "n1", "gather_facts": False, "tasks": [judge, tell(result=RELEASE)]},
        ]
        (made.folder / "playbooks" / f"{name}.yml").write_text(yaml.safe_dump(plays, sort_keys=False))
    return made


def inventory(work: Checkout, database: tuple[str, int], *lines: str) -> None:
    host, port = database
    nodes = [f"n1 {LOCAL}", f"n2 {LOCAL}", "n3 ansible_host=127.0.0.1 ansible_port=1"]
    groups = ["[swarm:children]", "managers", "[postgres]", f"n1 postgres_address={host} postgres_port={port}", *lines]
    (work.folder / "inventory.ini").write_text("\n".join(["[managers]", *nodes, *groups, ""]))


@contextmanager
def listening(answer: bytes) -> Iterator[tuple[str, int]]:
    """A server that says `answer` to whoever asks."""
    with socket.create_server((loopback.address(), 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed
                    return
                with connection:
                    connection.recv(8)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def nobody() -> tuple[str, int]:
    with socket.create_server((loopback.address(), 0)) as server:
        found: tuple[str, int] = server.getsockname()
    return found


@pytest.mark.parametrize("answer", [b"S", b"N"])
def test_a_postgresql_that_answers_is_enough(work: Checkout, answer: bytes) -> None:
    with listening(answer) as database:
        inventory(work, database)
        done = work.run("deploy", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["warnings"] == []


def test_a_deploy_is_refused_and_told_why_once_for_all_nodes(work: Checkout) -> None:
    database = nobody()
    inventory(work, database, "[nfs]", "n2")
    done = work.run("deploy")
    assert done.returncode == 3, done.stderr
    assert f"n1, n2: PostgreSQL at {database[0]}:{database[1]} cannot be reached: Connection refused" in done.stderr
    assert "Remedy: see that it runs" in done.stderr
    assert "n1, n2: /var/lib/lyttle-ops/shared " in done.stderr
    assert "--no-preflight" in done.stderr
    assert "n3" not in done.stderr  # a dead node is no reason
    assert "Nothing was changed." in done.stderr


def test_something_else_on_its_port_is_no_postgresql(work: Checkout) -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\n") as database:
        inventory(work, database)
        done = work.run("deploy")
    assert done.returncode == 3
    assert "something else listens there" in done.stderr


def test_a_postgresql_that_accepts_and_never_answers_is_away(work: Checkout) -> None:
    with socket.create_server((loopback.address(), 0)) as frozen:
        inventory(work, frozen.getsockname())
        done = work.run("deploy")
    assert done.returncode == 3
    assert "timed out" in done.stderr


@pytest.mark.parametrize("words", [("deploy", "--no-preflight"), ("rollback",), ("rollback", "--scale-one")])
def test_it_goes_on_where_it_is_asked_to_and_says_what_is_away(work: Checkout, words: tuple[str, ...]) -> None:
    inventory(work, nobody())
    done = work.run(*words)
    assert done.returncode == 0, done.stderr
    assert "warning: n1, n2: PostgreSQL at " in done.stdout


def test_the_host_of_postgresql_is_dead(work: Checkout) -> None:
    text = f"[managers]\nn1 {LOCAL}\n[swarm:children]\nmanagers\n[postgres]\ndb ansible_host=127.0.0.1 ansible_port=1\n"
    (work.folder / "inventory.ini").write_text(text + "[postgres:vars]\npostgres_port=1\n")
    done = work.run("deploy")
    assert done.returncode == 3
    assert "n1: PostgreSQL at 127.0.0.1:1 cannot be reached: Connection refused" in done.stderr


def test_what_the_nodes_do_not_use_is_not_asked(work: Checkout) -> None:
    off = 'stack_settings={"SHARED_DIR": ""}'
    several = "stack_database_url=postgresql://u:p@a.test:1,b.test:2/lyttle"
    inventory(work, nobody(), "[nfs]", "n2", "[all:vars]", several, off)
    done = work.run("deploy", "--json")
    assert done.returncode == 0, done.stdout
    inventory(work, nobody(), "[nfs]", "n2", "[all:vars]", "swarm_edge=false")
    assert work.run("deploy").returncode == 0
    no_docker = 'stack_instance={"msg": "The Docker engine does not answer"}'
    inventory(work, nobody(), "[nfs]", "n2", "[all:vars]", no_docker)
    assert work.run("deploy").returncode == 0


def test_a_deploy_before_site_yml_says_to_run_it(work: Checkout, tmp_path: Path) -> None:
    text = f"[managers]\nn1 {LOCAL}\n[swarm:children]\nmanagers\n[postgres]\nn1\n"
    (work.folder / "inventory.ini").write_text(text + "[all:vars]\nstack_image=r.test/lyttle-ops:1\n")
    role = {"role": "stack", "vars": {"stack_secrets_folder": str(tmp_path / "secrets")}}
    play = {"hosts": "managers", "gather_facts": False, "pre_tasks": [tell(outcome="refused")], "roles": [role]}
    (work.folder / "playbooks" / "deploy.yml").write_text(yaml.safe_dump([play]))
    with fake_engine(tmp_path / "docker.sock", {"/configs": [], "/services": []}) as host:
        done = work.run("deploy", DOCKER_HOST=host)
    assert done.returncode == 3
    assert "n1: This cluster has no stack yet" in done.stderr
    assert "run `lyttle-ops playbook site` first" in done.stderr

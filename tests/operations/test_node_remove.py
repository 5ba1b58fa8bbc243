"""A host leaves the Swarm: politely when its Docker answers, by force when it does not."""

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import yaml

from tests.support.operator import LOCAL, ROOT, Checkout, checkout

NODES = [
    {
        "ID": f"id{number}",
        "Description": {"Hostname": f"web-{number}"},
        "Status": {"State": "ready" if number < 4 else "down", "Addr": f"192.0.2.1{number}"},
        "Spec": {"Role": role, "Availability": "active", "Labels": {"lyttle.edge": "true"}},
        **({"ManagerStatus": {"Reachability": "reachable", "Addr": ""}} if number == 1 else {}),
    }
    for number, role in ((1, "manager"), (3, "worker"), (4, "manager"))
]


class Engine(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/nodes"
        body = json.dumps(NODES if known else {"message": "no such service"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Checkout]:
    made = checkout(tmp_path, [])
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "s"), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


def remove(work: Checkout, says: str, host: str) -> tuple[list[str], str]:
    """The commands that the Swarm was given, and what was said. `says`: what `docker info` does on the leaver."""
    log = work.folder / "commands"
    log.write_text("")
    work.folder.joinpath("docker").write_text(
        f'#!/bin/sh\ncase "$*" in *ControlAvailable*) echo false;; info*) {says};; *inspect*) echo down;; '
        f'*) echo "$*" >> {log};; esac\n'
    )
    work.folder.joinpath("docker").chmod(0o755)
    (work.folder / "inventory.ini").write_text(f"n1 {LOCAL}\nn4 {host}\n")
    block = yaml.safe_load((ROOT / "roles/stack/tasks/node_remove.yml").read_text())[1]["block"]
    play = {
        "hosts": "n1",
        "gather_facts": False,
        "environment": {"PATH": f"{work.folder}:/usr/bin:/bin", "DOCKER_HOST": f"unix://{work.folder.parent}/s"},
        "vars": {"stack_node": "n4", "stack_service": "s", "stack_secrets_folder": str(work.folder / "secrets")},
        "tasks": block,
    }
    (work.folder / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
    stack = ROOT / "roles/stack"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory.ini", "play.yml"],
        cwd=work.folder,
        env=work.environment(
            ANSIBLE_LIBRARY=str(stack / "library"),
            ANSIBLE_MODULE_UTILS=str(stack / "module_utils"),
            ANSIBLE_SHOW_CUSTOM_STATS="true",
        ),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return log.read_text().splitlines(), " ".join((done.stdout + done.stderr).replace("\\n", " ").split())


def test_a_dead_host_is_removed_by_its_address(work: Checkout) -> None:
    commands, said = remove(work, "exit 1", "ansible_host=127.0.0.1 ansible_port=1 swarm_address=192.0.2.14")
    assert commands == ["node update --availability drain id4", "node demote id4", "node rm --force id4"], said
    assert "n4 is no node of the cluster any more; it did not answer" in said


def test_a_host_whose_docker_is_dead_is_none_that_was_reached(work: Checkout) -> None:
    commands, said = remove(work, "exit 1", f"{LOCAL} swarm_address=192.0.2.14")
    assert commands[-1] == "node rm --force id4", said


def test_a_dead_host_that_is_no_known_node_is_not_called_removed(work: Checkout) -> None:
    commands, said = remove(work, "exit 1", "ansible_host=127.0.0.1 ansible_port=1")
    assert commands == []
    assert "web-4 at 192.0.2.14 (down, id id4)" in said
    assert "no node of the cluster any more" not in said


def test_a_host_that_answers_leaves_by_itself(work: Checkout) -> None:
    (work.folder / "secrets").mkdir()
    commands, said = remove(work, "echo active id3", LOCAL)
    assert commands == ["node update --availability drain id3", "swarm leave", "node rm id3"], said
    assert not (work.folder / "secrets").exists()
    assert "n4 is no node of the cluster any more; it may connect to PostgreSQL and NFS until" in said

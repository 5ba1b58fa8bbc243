"""Hosts that are dead, frozen or without a working engine: the next manager is taken, and it goes on without them."""

import json
import stat
from pathlib import Path

import pytest
import yaml

from tests.support.operator import LOCAL, ROOT, Checkout, checkout, tell

FROZEN = "ansible_host=127.0.0.1 ansible_ssh_executable={folder}/frozen"  # ssh that neither answers nor ends
DEAD = "ansible_host=127.0.0.1 ansible_port=1"
ENGINES = {
    "hanging": "trap '' TERM; while :; do sleep 0.1; done",
    "worker": "echo false",
    "manager": "echo true",
    "cut-off": "echo true rpc error: The swarm does not have a leader",
    "with-image": "test $1 = image && echo sha256:1",
    "dead-engine": "exit 1",
}


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    """A checkout with the real roles, their patience shortened, and an engine's command for each kind of host."""
    made = checkout(tmp_path, [])
    (made.folder / "roles").rmdir()
    (made.folder / "roles").symlink_to(tmp_path / "roles")
    tasks = tmp_path / "roles" / "stack" / "tasks"
    tasks.mkdir(parents=True)
    for path in (ROOT / "roles" / "stack").iterdir():
        if path.name != "tasks":
            (tmp_path / "roles" / "stack" / path.name).symlink_to(path)
    for path in (ROOT / "roles/stack/tasks").iterdir():
        text = path.read_text()
        for long, short in (("timeout: 30", "timeout: 20"), ("timeout: 60", "timeout: 8"), ('=5, "20"', '=1, "4"')):
            text = text.replace(long, short)
        (tasks / path.name).write_text(text)
    for path in (ROOT / "roles").iterdir():
        if path.name != "stack":
            (tmp_path / "roles" / path.name).symlink_to(path)
    program(made.folder / "frozen", "exec sleep 600")
    for name, script in ENGINES.items():
        program(made.folder / name / "docker", script)
    return made


def program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def inventory(work: Checkout, **hosts: str) -> None:
    """`hosts`: name → frozen, dead, or an engine's kind."""
    lines = []
    for name, kind in hosts.items():
        away = {"frozen": FROZEN.format(folder=work.folder), "dead": DEAD}.get(kind)
        lines.append(f"{name} {away or f'{LOCAL} programs={work.folder / kind}'}")
    text = "\n".join(["[managers]", *lines, "", "[swarm:children]", "managers", ""])
    (work.folder / "inventory.ini").write_text(text)


def play(hosts: str, file: str, **variables: object) -> dict[str, object]:
    return {
        "hosts": hosts,
        "gather_facts": False,
        "environment": {
            "PATH": "{{ hostvars[item | default(inventory_hostname)].programs | default('') }}:/usr/bin:/bin"
        },
        "vars": variables,
        "tasks": [{"ansible.builtin.import_role": {"name": "stack", "tasks_from": file}}],
    }


def write(work: Checkout, *plays: dict[str, object]) -> None:
    (work.folder / "playbooks" / "deploy.yml").write_text(yaml.safe_dump(list(plays), sort_keys=False))


def then(hosts: str, **result: object) -> dict[str, object]:
    return {"hosts": hosts, "gather_facts": False, "tasks": [tell(result=result)]}


def test_the_first_manager_that_answers_works_for_all(work: Checkout) -> None:
    inventory(work, n1="frozen", n2="dead", n3="hanging", n4="worker", n5="manager", n6="manager")
    write(work, play("managers", "manager.yml"), then("stack_manager", by="{{ inventory_hostname }}"))
    done = work.run("deploy", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout) == {"by": "n5"}


def test_a_manager_cut_off_from_the_others_is_the_last_one_to_be_taken(work: Checkout) -> None:
    taken = then("stack_manager", by="{{ inventory_hostname }}")
    for hosts, by in (({"n1": "cut-off", "n2": "manager"}, "n2"), ({"n1": "worker", "n2": "cut-off"}, "n2")):
        inventory(work, **hosts)
        write(work, play("managers", "manager.yml"), taken)
        done = work.run("deploy", "--json")
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout) == {"by": by}


def test_without_any_it_is_said_of_each_why(work: Checkout) -> None:
    inventory(work, n1="frozen", n2="dead", n3="hanging")
    write(work, play("managers", "manager.yml"), then("stack_manager", by="{{ inventory_hostname }}"))
    done = work.run("deploy")
    assert done.returncode == 3
    assert "n1: gives no answer within 30 s" in done.stderr
    assert "n2: cannot be reached by ssh" in done.stderr
    assert "n3: its Docker engine gives no answer within 20 s" in done.stderr


def test_a_node_that_hangs_is_left_out_of_the_look_at_the_nodes(work: Checkout) -> None:
    inventory(work, n1="manager", n2="frozen", n3="dead")
    write(work, play("swarm", "instances.yml"), then("n1", done=True))
    assert work.run("deploy", DOCKER_HOST="unix:///nonexistent").returncode == 0


def test_a_node_that_does_not_answer_is_brought_no_image(work: Checkout) -> None:
    inventory(work, n1="with-image", n2="frozen", n3="dead", n4="with-image", n5="dead-engine")
    asked = "{{ stack_have.results | selectattr('rc', 'defined') | map(attribute='item') | list }}"
    write(work, play("n1", "load.yml", stack_found={"image": "lyttle-ops:1"}), then("n1", on=asked))
    done = work.run("deploy", "--json")
    assert done.returncode == 0, done.stdout
    assert "n2, n3, n5: not reached" in work.runs[-1].joinpath("log").read_text()
    assert json.loads(done.stdout) == {"on": ["n1", "n4", "n5"]}


def test_a_node_is_not_added_while_a_host_that_has_to_let_it_in_is_away(work: Checkout) -> None:
    inventory(work, n1="manager", n4="worker", db="dead")
    hosts = work.folder / "inventory.ini"
    more = ["[swarm:vars]", "ansible_become=false", "[postgres]", "db", ""]
    hosts.write_text(hosts.read_text() + "\n".join(more))
    plays = yaml.safe_load((ROOT / "playbooks/node_add.yml").read_text())
    path = "{{ hostvars[inventory_hostname].programs | default('') }}:/usr/bin:/bin"
    with_programs = [{**each, "environment": {"PATH": path}} for each in plays]
    (work.folder / "playbooks/node_add.yml").write_text(yaml.safe_dump(with_programs, sort_keys=False))
    done = work.run("node", "add", "n4")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "db cannot be reached: a new node has to be let in by PostgreSQL" in done.stderr
    assert "TASK [docker" not in work.runs[-1].joinpath("log").read_text()

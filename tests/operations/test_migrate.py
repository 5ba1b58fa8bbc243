"""The switch from the old server: not to know whether it runs is not "it is stopped"; a failed one leaves no label, and
one that lost the lock starts nothing where somebody else's node serves."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.answering import answering
from tests.support.fake_engine import config, fake_engine
from tests.support.operator import LOCAL, ROOT, Checkout, checkout

NOTHING: dict[str, list[object]] = {"imported": [], "present": [], "refused": []}
READ = json.dumps({"proxies": NOTHING, "certificates": NOTHING})
RUNS = {"instance": {"container": "c", "domains": [], "status": {"state": "ready"}}}
AWAY = "ansible_host=127.0.0.1 ansible_port=1"
DAEMON = "echo Cannot connect to the Docker daemon: dial unix: no such file or directory >&2; exit 1"
# What somebody does who takes the lock over while this machine sleeps, and is done.
LOSE = (
    f"PYTHONPATH={ROOT}/roles/stack/module_utils {sys.executable} -B -c 'import lyttle_engine; "
    'engine = lyttle_engine.Engine(); engine.remove_config(engine.config("lyttlenginx_deploy_lock")["ID"])\''
)
ABSENT = "echo Error response from daemon: No such container: old-nginx >&2; exit 1"


pytestmark = pytest.mark.timeout(400)  # ansible-playbook on a busy machine


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, [])


def migrate(
    work: Checkout,
    step: str,
    sees: str,
    old: str = "migrate_old_container",
    host: str = LOCAL,
    swarm: str = "n1",
    updates: str = "true",
    configs: Sequence[dict[str, Any]] = (),
    http_port: int = 1,
    read: str = READ,
    edge: str = "echo false",
) -> tuple[list[str], str]:
    """The commands that Docker was given, and what was said.

    `sees` and `updates`: what `docker inspect` of the old server and `docker node update` do. Port 1 is closed.
    `read`: what the import of its database says. `edge`: what tells whether nodes may run on its host.
    """
    kept = list(configs)
    log = work.folder / "commands"
    log.write_text("")
    work.folder.joinpath("docker").write_text(
        f"""#!/bin/sh
case "$*" in
  "inspect "*|"service inspect "*Replicas*) {sees};;
  "service inspect "*) echo image;;
  "exec --interactive "*) cat > {work.folder}/given; echo '{read}';;
  info*) echo id4;;
  "node inspect "*) {edge};;
  *) echo "$*" >> {log}; case "$*" in *edge=true*) {updates};; esac;;
esac
"""
    )
    work.folder.joinpath("docker").chmod(0o755)
    text = f"n1 {LOCAL} ansible_host=127.0.0.1\nold {host}\n[managers]\nn1\n[swarm]\n{swarm}\n"
    (work.folder / "inventory.ini").write_text(text)
    with fake_engine(work.folder.parent / "s", {"/services": [], "/configs": kept}) as engine:
        plays = [
            {"hosts": "n1", "gather_facts": False, "tasks": [{"ansible.builtin.set_fact": {"stack_instance": RUNS}}]},
            {
                "hosts": "n1",
                "gather_facts": False,
                "environment": {"PATH": f"{work.folder}:/usr/bin:/bin", "DOCKER_HOST": engine},
                "vars": {
                    "migrate_step": step,
                    "migrate_confirm": "yes",
                    "migrate_old_host": "old",
                    "migrate_old_address": "127.0.0.1",
                    "migrate_source_url": "postgresql://u@d/n",
                    old: "old-nginx",
                    "stack_http_port": http_port,
                },
                "tasks": [{"ansible.builtin.import_role": {"name": "stack", "tasks_from": "migrate.yml"}}],
            },
        ]
        (work.folder / "play.yml").write_text(yaml.safe_dump(plays, sort_keys=False))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory.ini", "play.yml"],
            cwd=work.folder,
            env=work.environment(ANSIBLE_ROLES_PATH=str(ROOT / "roles")),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    assert kept == list(configs)  # the lock is released, whatever came of it
    return log.read_text().splitlines(), " ".join((done.stdout + done.stderr).replace("\\n", " ").split())


@pytest.mark.parametrize(
    ("sees", "host", "reason"),
    [
        (ABSENT, LOCAL, "There is no old-nginx on old: see to migrate_old_host and migrate_old_container"),
        (DAEMON, LOCAL, "Whether old-nginx runs is not known: Cannot connect to the Docker daemon"),
        ("exit 124", LOCAL, "Whether old-nginx runs is not known: Docker gives no answer within 20 s"),
        ("echo true", AWAY, "Whether old-nginx runs is not known: "),
    ],
    ids=["absent", "no daemon", "hangs", "away"],
)
def test_a_server_that_is_not_seen_is_not_called_stopped(work: Checkout, sees: str, host: str, reason: str) -> None:
    commands, said = migrate(work, "switch", sees, host=host, swarm="n1\nold")
    assert reason in said
    assert commands == []
    assert "stays so after a reboot" not in said


def test_a_service_in_global_mode_is_refused(work: Checkout) -> None:
    commands, said = migrate(work, "switch", "echo global", old="migrate_old_service")
    assert "old-nginx is a service in global mode, which cannot be scaled to 0 and back. Write `mode: repl" in said
    assert commands == []


def test_a_switch_that_fails_takes_the_label_back_while_the_old_host_does_not_answer(work: Checkout) -> None:
    once = f"test -e {work.folder}/asked && {{ {DAEMON}; }}; touch {work.folder}/asked; echo false"
    commands, said = migrate(work, "switch", once, swarm="n1\nold", updates="exit 1")
    assert commands == [
        "node update --label-add lyttle.edge=true id4",
        "node update --label-add lyttle.edge=false id4",
    ], said
    assert "Not switched. Let a node run there: " in said
    assert "old-nginx on old was NOT started again (Whether old-nginx runs is not known: Cannot connect" in said


def test_a_switch_that_lost_the_lock_starts_the_old_server_and_leaves_the_label(work: Checkout) -> None:
    commands, said = migrate(work, "switch", "echo false", swarm="n1\nold", updates=f"{LOSE}; exit 1")
    assert commands == [
        "node update --label-add lyttle.edge=true id4",
        "update --restart=unless-stopped old-nginx",
        "start old-nginx",
    ], said
    assert "old-nginx on old was started again. The label lyttle.edge of old was left as it is, since the" in said
    assert "When they are done: `docker node update --label-add lyttle.edge=false id4`" in said


def test_a_switch_that_lost_the_lock_leaves_the_host_to_the_node_that_answers_there(work: Checkout) -> None:
    with answering("t1", "127.0.0.1") as port:
        commands, said = migrate(work, "switch", "echo false", swarm="n1\nold", updates=LOSE, http_port=port)
    assert commands == ["node update --label-add lyttle.edge=true id4"], said
    assert "The switch was not proved. Refresh the lock: The deploy lock was taken over by somebody else" in said
    assert "The node serves on old and old-nginx stays stopped, since the cluster is theirs who have the lock" in said
    assert "When they are done: migrate_step=switch proves it, migrate_step=back starts old-nginx again" in said


@pytest.mark.parametrize(
    ("edge", "why"),
    [
        (f"{LOSE}; echo true", "Refresh the lock: The deploy lock was"),
        ("echo the swarm does not have a leader >&2; exit 1", "See whether nodes may run there: "),
    ],
)
def test_a_switch_that_is_repeated_and_fails_leaves_everything_as_it_is(work: Checkout, edge: str, why: str) -> None:
    with answering("t1", "127.0.0.1") as port:
        commands, said = migrate(work, "switch", "echo false", swarm="n1\nold", http_port=port, edge=edge)
    assert commands == [], said
    assert f"old-nginx was stopped before, and the node on old is not proved. {why}" in said
    assert "As for now, nothing was changed" in said


def test_a_server_that_could_not_be_stopped_starts_with_its_host_again(work: Checkout) -> None:
    commands, said = migrate(work, "back", "echo true")
    assert commands == ["update --restart=unless-stopped old-nginx"], said
    assert "old-nginx runs on old again" in said


def test_a_stopped_server_is_switched_from_and_removed(work: Checkout) -> None:
    commands, said = migrate(work, "switch", "echo false")
    assert commands == []
    assert "old-nginx on old is stopped and stays so after a reboot" in said
    commands, said = migrate(work, "remove", "echo false")
    assert commands == ["rm old-nginx"], said
    assert "old-nginx is gone from old" in said


def present(domains: str, found: str) -> str:
    """What an import of the old database says that has one entry, `found` here: imported, or present before."""
    names = ["a.example.test", "b.example.test"]
    item = {"source": "1", "domains": domains, "id": 1, "note": "", "names": names}
    return json.dumps({"proxies": {**NOTHING, found: [item]}, "certificates": NOTHING})


def test_a_switch_that_imports_something_asks_for_another_look_first(work: Checkout) -> None:
    commands, said = migrate(work, "switch", "echo true", read=present("a.example.test", "imported"))
    assert "a.example.test came to the old server since the last import and is now imported: migrate_step" in said
    assert commands == []


def test_a_domain_that_no_node_serves_is_named(work: Checkout) -> None:
    _, said = migrate(work, "verify", "echo true", read=present("A.example.test; b.example.test;", "present"))
    assert "n1 does not serve a.example.test, b.example.test, whose entries are here" in said


def test_removing_says_what_it_does_not_know_and_what_it_did_not_find(work: Checkout) -> None:
    _, said = migrate(work, "remove", DAEMON)
    assert "Whether old-nginx runs is not known" in said
    assert "is gone from" not in said
    _, said = migrate(work, "remove", ABSENT)
    assert "There is no old-nginx on old, by that name; nothing was removed now" in said


def test_a_switch_waits_for_no_deploy_of_somebody_else(work: Checkout) -> None:
    lock = {"owner": "ann@desk", "host": "another", "reason": "1.2.3", "expires_at": "2999-01-01T00:00:00Z"}
    held = config("lyttlenginx_deploy_lock", {**lock, "started_at": "2026-01-01T00:00:00Z"})
    commands, said = migrate(work, "switch", "echo true", configs=[held])
    assert commands == []
    assert "Refused: ann@desk has the deploy lock since 2026-01-01T00:00:00Z (1.2.3)." in said

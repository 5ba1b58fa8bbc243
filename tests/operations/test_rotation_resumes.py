"""A change of secrets begins only with every manager, and goes on from what an interrupted one left on some."""

from pathlib import Path

import pytest

from tests.support.operator import LOCAL, Checkout, checkout

DEAD = "ansible_host=127.0.0.1 ansible_port=1"
OLD = {"master_key": "old", "admin_password": "a"}


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, [])


def rotate(work: Checkout, managers: dict[str, dict[str, str] | None]) -> tuple[str, dict[str, dict[str, str]]]:
    """What was said, and what each manager keeps then. `managers`: what each keeps; None: it is dead."""
    lines = []
    for name, kept in managers.items():
        folder = work.folder / name
        folder.mkdir()
        for secret, value in (kept or {}).items():
            (folder / secret).write_text(value + "\n")
        lines.append(f"{name} {DEAD if kept is None else LOCAL} folder={folder}\n")
    (work.folder / "inventory.ini").write_text("[managers]\n" + "".join(lines))
    folder_of_any = "{{ hostvars[item | default(inventory_hostname)].folder }}"
    plays = [
        {
            "hosts": hosts,
            "gather_facts": False,
            "vars": {"stack_keep": "{{ stack_merged['values'] }}"},
            "tasks": [{"ansible.builtin.import_role": {"name": "stack", "tasks_from": file}}],
        }
        for hosts, file in (("managers", "rotate_read.yml"), ("n2", "rotate_keep.yml"))
    ]
    _, said = work.play(plays, "-e", f"stack_secrets_folder={folder_of_any}")
    return said, {
        name: {path.name: path.read_text().strip() for path in (work.folder / name).iterdir()} for name in managers
    }


@pytest.mark.timeout(300)
def test_without_a_manager_nothing_is_changed(work: Checkout) -> None:
    said, kept = rotate(work, {"n1": None, "n2": {**OLD, "master_key_new": "new"}, "n3": OLD})
    assert "n1 cannot be reached or is left out by --limit" in said
    assert kept == {"n1": {}, "n2": {**OLD, "master_key_new": "new"}, "n3": OLD}


@pytest.mark.timeout(300)
def test_what_an_interrupted_change_left_on_some_is_on_all(work: Checkout) -> None:
    begun = {**OLD, "master_key_new": "new"}
    _, kept = rotate(work, {"n1": {**begun, "master_key": "new"}, "n2": begun, "n3": OLD, "n4": {}})  # n4: reinstalled
    assert kept == {"n1": begun, "n2": begun, "n3": begun, "n4": begun}


@pytest.mark.timeout(300)
def test_secrets_that_differ_for_no_such_reason_are_named(work: Checkout) -> None:
    said, _ = rotate(work, {"n1": OLD, "n2": {**OLD, "admin_password": "b"}})
    assert "The managers do not keep the same admin_password" in said

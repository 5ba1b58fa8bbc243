"""docs/variables.md names every variable that an operator can set, with its default, and no other."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest

from tests.unit.test_ansible import PROJECT, ROLES, _expressions, _load

PAGE = (PROJECT / "docs/variables.md").read_text()
STACK_FILE = PROJECT / "docker-compose.swarm.yml"
# A default that Ansible works out stands there in words: whoever changes one changes them, too.
IN_WORDS = {
    "{{ ansible_facts['default_ipv4']['address'] }}": "the host's default IPv4 address",
    "{{ groups['swarm'] }}": "the group `swarm`",
    "{{ ((11 * postgres_clients | length + 10) / 100) | round(0, 'ceil') | int * 100 }}": (
        "11 × clients + 10, up to the next hundred"
    ),
    "{{ (groups['nfs'] | default([]) | map('extract', hostvars) | first).swarm_address"
    " | default((groups['nfs'] | map('extract', hostvars) | first).ansible_facts['default_ipv4']['address'], true)"
    " | default('', true) if groups['nfs'] | default([]) else '' }}": (
        "address of the host in group `nfs`; empty without one"
    ),
    "{{ playbook_dir }}/..": "the folder above `playbooks/`",
    "{{ playbook_dir }}/../docker-compose.swarm.yml": "`docker-compose.swarm.yml` beside `playbooks/`",
}
# What Ansible and Jinja bring.
GIVEN = {"dict", "groups", "hostvars", "item", "lookup", "loop", "now", "omit", "playbook_dir"}


def rows(section: str) -> dict[str, list[str]]:
    """The cells behind each name in the table of one section."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    names = [name.strip("`") for name, *_ in cells]
    assert len(names) == len(set(names)), "a name stands twice"
    return {name: others for name, (_, *others) in zip(names, cells, strict=True)}


def options() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(role, or playbook; name; option) of every variable in the argument specs."""
    for role in ROLES:
        for entry, specs in _load(role / "meta/argument_specs.yml")["argument_specs"].items():
            for name, option in specs["options"].items():
                yield role.name if entry == "main" else entry.partition("_")[0], name, option


def in_the_table(option: dict[str, Any]) -> str:
    """An option's default as the page has it."""
    if "default" not in option:
        return "required; site.yml makes it once" if option.get("required") else "none"
    default = option["default"]
    if isinstance(default, str) and "{{" in default:
        return IN_WORDS[" ".join(default.split())]
    return f"`{default if isinstance(default, str) and default else json.dumps(default)}`"


def test_the_page_has_every_option_with_its_default_and_its_role() -> None:
    table = rows("Variables")
    wanted = {name: [in_the_table(option), where] for where, name, option in options()}
    assert {name: table.get(name, [])[:2] for name in wanted} == wanted


def test_every_variable_is_described() -> None:
    both = {**rows("Variables"), **rows("Settings of the stack")}
    assert [name for name, cells in both.items() if not cells[-1]] == []


def defined(found: Any) -> Iterator[str]:
    """Names that tasks and plays set themselves."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "register":
                yield value
            elif key in ("ansible.builtin.set_fact", "vars"):
                yield from value
            elif key == "loop_control":
                yield from (name for each, name in value.items() if each.endswith("_var"))
            yield from defined(value)
    elif isinstance(found, list):
        for each in found:
            yield from defined(each)


def used(template: str) -> set[str]:
    """Names that a template takes from outside."""
    tree = jinja2.Environment(extensions=["jinja2.ext.do"]).parse(template)
    names = list(tree.find_all(jinja2.nodes.Name))
    return {each.name for each in names if each.ctx == "load"} - {each.name for each in names if each.ctx != "load"}


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")
def test_the_page_has_every_variable_of_the_playbooks_and_no_other() -> None:
    """A name that is read somewhere, and that nothing here sets, is one that an operator gives."""
    optional = {name for _, name, _ in options()}
    files = [
        path
        for path in [*(PROJECT / "roles").rglob("*.yml"), *(PROJECT / "playbooks").glob("*.yml")]
        if path.parent.name != "meta"
    ]
    ours, read = set(), set()
    for path in files:
        found = _load(path)
        ours |= set(defined(found)) | (set(found or {}) if path.parent.name in ("defaults", "vars") else set())
        read |= {name for text in _expressions(found) for name in used(text)}
    read |= {name for path in (PROJECT / "roles").rglob("*.j2") for name in used(path.read_text())}
    told = {name for name in read - ours - optional - GIVEN if not re.match("ansible_|inventory_", name)}
    assert {"node", "restore_from"} <= told
    assert set(rows("Variables")) == optional | told


def test_the_page_has_every_setting_of_the_stack_with_its_default() -> None:
    example = dict(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=(.*)$", (PROJECT / ".env.example").read_text(), re.MULTILINE))
    used_there = re.findall(r"[$]{([A-Z_]+)(?::?-([^}]*))?", STACK_FILE.read_text())  # as tasks/preflight.yml reads it
    defaults = {
        name: default or example[name] for name, default in used_there if not re.match("LYTTLE_|SECRET_|CONFIG_", name)
    }
    wanted = {name: f"`{default}`" if default else "none" for name, default in defaults.items()}
    assert {name: cells[0] for name, cells in rows("Settings of the stack").items()} == wanted

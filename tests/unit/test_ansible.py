"""The roles tell the truth about themselves: defaults, argument specs, READMEs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest

yaml = pytest.importorskip("yaml", reason="comes with the extra [control]")

_CONDITIONS = {"when", "that", "until", "failed_when", "changed_when"}

PROJECT = Path(__file__).parents[2]
ROLES = sorted(path for path in (PROJECT / "roles").iterdir() if path.is_dir())


class _Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
    """YAML as Ansible reads it: with its own tags, and a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice"
        return dict(super().construct_mapping(node, deep))


for _tag in ("!unsafe", "!vault"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_scalar(node))


def _load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=_Loader)


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
class TestRole:
    def test_argument_specs_and_defaults_agree(self, role: Path) -> None:
        options = _load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        defaults = _load(role / "defaults/main.yml") or {}
        documented = {name: option["default"] for name, option in options.items() if "default" in option}
        assert documented == defaults
        assert [name for name, option in options.items() if option.get("required") and "default" in option] == []

    def test_variables_carry_the_roles_name(self, role: Path) -> None:
        options = _load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        assert [name for name in options if not name.startswith(f"{role.name}_")] == []

    def test_options_are_described_and_typed(self, role: Path) -> None:
        for specs in _load(role / "meta/argument_specs.yml")["argument_specs"].values():
            options = specs["options"]
            assert [
                name for name, option in options.items() if not option.get("description") or "type" not in option
            ] == []

    def test_entry_points_are_called_as_they_are_named(self, role: Path) -> None:
        # Ansible compares the names to the letter: with .yml in a playbook it would check nothing.
        playbooks = [_load(path) for path in (PROJECT / "playbooks").glob("*.yml")]
        tasks = [
            task for plays in playbooks if isinstance(plays, list) for play in plays for task in play.get("tasks", ())
        ]
        called = [task.get("ansible.builtin.import_role", {}) for task in tasks]
        named = {each["tasks_from"] for each in called if each.get("name") == role.name and "tasks_from" in each}
        assert set(_load(role / "meta/argument_specs.yml")["argument_specs"]) - {"main"} <= named

    def test_readme_names_every_variable(self, role: Path) -> None:
        options = _load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        readme = (role / "README.md").read_text()
        assert [name for name in options if f"`{name}`" not in readme] == []

    def test_readme_names_no_other_variable(self, role: Path) -> None:
        options = _load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        rows = [line for line in (role / "README.md").read_text().splitlines() if line.startswith(f"| `{role.name}_")]
        assert {row.split("`")[1] for row in rows} == set(options)

    def test_tasks_start_with_a_preflight(self, role: Path) -> None:
        assert (role / "tasks/preflight.yml").exists()


@pytest.mark.parametrize(
    "path",
    sorted([*(PROJECT / "roles").rglob("*.yml"), *(PROJECT / "playbooks").rglob("*.yml")]),
    ids=lambda path: str(path.relative_to(PROJECT)),
)
def test_yaml_loads(path: Path) -> None:
    _load(path)


def _tasks(found: Any) -> Iterator[dict[str, Any]]:
    for each in found if isinstance(found, list) else []:
        yield each
        for part in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            yield from _tasks(each.get(part))


def test_what_a_person_has_to_read_is_not_hidden() -> None:
    hidden = [
        f"{path.relative_to(PROJECT)}: {task['name']}"
        for path in [*(PROJECT / "roles").rglob("tasks/*.yml"), *(PROJECT / "playbooks").glob("*.yml")]
        for task in _tasks(_load(path))
        if task.get("no_log") is True and task.keys() & {"ansible.builtin.assert", "ansible.builtin.fail"}
    ]
    assert hidden == []


def _expressions(found: Any, bare: bool = False) -> Iterator[str]:
    """All that Ansible evaluates, as templates. `bare`: it stands without braces, as conditions do."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _expressions(value, key in _CONDITIONS)
    elif isinstance(found, list):
        for each in found:
            yield from _expressions(each, bare)
    elif isinstance(found, str):
        yield "{{ " + found + " }}" if bare else found


def _raw_uses(template: str, names: set[str]) -> set[str]:
    """Those of the names that a template uses without the filter bool, with which a string is what it says."""
    tree = jinja2.Environment(extensions=["jinja2.ext.do"]).parse(template)
    safe: set[int] = set()
    for each in tree.find_all(jinja2.nodes.Filter):
        inner: Any = each if each.name == "bool" else None
        while isinstance(inner, jinja2.nodes.Filter) and inner.name in ("bool", "default"):
            inner = inner.node
        safe.add(id(inner))
    used = [(each, each.name) for each in tree.find_all(jinja2.nodes.Name)]
    used += [(each, each.attr) for each in tree.find_all(jinja2.nodes.Getattr)]
    return {name for each, name in used if name in names and id(each) not in safe}


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")
def test_yes_and_no_mean_the_same_in_each_way_to_give_a_variable() -> None:
    """An inventory.ini and -e hand on strings, and the string false is true."""
    specs = [each for role in ROLES for each in _load(role / "meta/argument_specs.yml")["argument_specs"].values()]
    names = {name for each in specs for name, option in each["options"].items() if option["type"] == "bool"}
    assert {"swarm_edge", "stack_build", "teardown_data"} <= names
    read = [*(PROJECT / "roles").rglob("*.yml"), *(PROJECT / "playbooks").glob("*.yml")]
    found = [(path, text) for path in read if path.parent.name != "meta" for text in _expressions(_load(path))]
    found += [(path, path.read_text()) for path in (PROJECT / "roles").rglob("*.j2")]
    names.add("stack_install_secrets")  # of site.yml
    raw = {f"{path.relative_to(PROJECT)}: {name}" for path, text in found for name in _raw_uses(text, names)}
    assert raw == set()


@pytest.fixture(scope="module")
def tags() -> dict[str, list[set[str]]]:
    """The tags of each play's tasks in site.yml, as Ansible lists them: without what is included on the way."""
    inventory = str(PROJECT / "inventory.example.ini")
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "--list-tasks", "-i", inventory, "playbooks/site.yml"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, list[set[str]]] = {}
    for line in done.stdout.splitlines():
        told = re.match(r"  (?:play #\d+ \(.*?\): (?P<play>.+)|    .*)\tTAGS: \[(?P<tags>.*)\]$", line)
        if told and told["play"]:
            tasks = found.setdefault(told["play"], [])
        elif told:
            tasks.append(set(filter(None, told["tags"].split(", "))))
    assert found, done.stderr
    return found


def test_the_tags_that_are_documented_are_those_that_there_are(tags: dict[str, list[set[str]]]) -> None:
    documented = set()
    for role in ROLES:
        line = re.search(r"^\*\*Tags:\*\*(.*)$", (role / "README.md").read_text(), re.MULTILINE)
        documented |= set(re.findall(r"`([a-z_]+)`", line[1])) if line else set()
    assert documented == {tag for tasks in tags.values() for each in tasks for tag in each} - {"always"}


def test_with_any_tag_the_roles_are_given_what_they_insist_on(tags: dict[str, list[set[str]]]) -> None:
    for play in ("Learn the hosts", "Secrets"):
        assert all("always" in each for each in tags[play]), play


def test_a_deploy_by_its_tag_is_the_whole_deploy(tags: dict[str, list[set[str]]]) -> None:
    plays = [play["name"] for play in _load(PROJECT / "playbooks/deploy.yml")]
    assert all("stack" in each for play in plays for each in tags[play])
    # A tag on a task does not reach the files that it includes, one on the play does.
    site = _load(PROJECT / "playbooks/site.yml")
    assert [play["tags"] for play in site if "ansible.builtin.import_playbook" in play] == [["stack"]]


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_a_tagged_file_hands_its_tag_on_to_what_it_includes(role: Path) -> None:
    main = _load(role / "tasks/main.yml")
    tagged = [
        role / "tasks" / task["ansible.builtin.import_tasks"] for task in main if "tags" in task and len(task) == 3
    ]
    for path in [role / "tasks/main.yml", *tagged] if tagged else []:
        for task in _load(path):
            included = task.get("ansible.builtin.include_tasks")
            assert included is None or "apply" in included, f"{path.name}: {task['name']}"

"""The roles tell the truth about themselves: defaults, argument specs, READMEs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="comes with the extra [control]")

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
        options = _load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        assert [name for name, option in options.items() if not option.get("description") or "type" not in option] == []

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

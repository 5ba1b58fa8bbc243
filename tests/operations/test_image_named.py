"""A deploy has to know its image; with stack_build it makes one itself, whichever way that is said."""

from pathlib import Path

import pytest
import yaml

from tests.support.operator import ROOT, Checkout, checkout


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, ["n1"])


@pytest.mark.parametrize(
    ("variables", "code"), [("stack_build=false", 2), ("stack_build=true", 0), ("stack_version=1.2.3", 0)]
)
def test_an_image_is_named_or_built(work: Checkout, variables: str, code: int) -> None:
    tasks = yaml.safe_load((ROOT / "roles/stack/tasks/preflight.yml").read_text())
    named = [task for task in tasks if task["name"] == "Assert that an image is named"]
    assert named
    inventory = work.folder / "inventory.ini"
    inventory.write_text(
        inventory.read_text() + f'[all:vars]\nstack_image=""\nstack_version=""\nstack_build=false\n{variables}\n'
    )
    play = {"hosts": "n1", "gather_facts": False, "tasks": named}
    done, said = work.play([play])
    assert done == code, said
    assert ("Say what to deploy" in said) == (code != 0)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("--tags", "stack"), 2),
        (("-e", "stack_build=true"), 0),
        (("--skip-tags", "stack"), 0),
        (("--tags", "docker,swarm"), 0),
    ],
)
def test_site_asks_for_the_image_first_where_it_will_need_one(
    work: Checkout, arguments: tuple[str, ...], code: int
) -> None:
    plays = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
    (play,) = [each for each in plays if each["name"] == "Learn the hosts"]
    asks = [task for task in play["tasks"] if task["name"] == "Assert that an image is named"]
    assert asks
    done, said = work.play([{**play, "hosts": "n1", "gather_facts": False, "tasks": asks}], *arguments)
    assert done == code, said
    assert ("Say what to deploy" in said) == (code != 0)

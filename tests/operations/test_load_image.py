"""An image without a registry goes from the manager to the nodes that lack it, and leaves nothing behind."""

import gzip
import os
from pathlib import Path

import pytest

from tests.support.operator import LOCAL, Checkout, checkout

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="Becomes root without a password, by su"),
]


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    made = checkout(tmp_path, [])
    script = '#!/bin/sh\ncase "$1" in image) {image};; save) echo content;; load) shift; {load};; esac\n'
    for name, image, load in (("n1", "echo sha256:1", "exit 9"), ("n2", ":", f"cp $3 {made.folder}/loaded")):
        (made.folder / name).mkdir()
        (made.folder / name / "docker").write_text(script.format(image=image, load=load))
        (made.folder / name / "docker").chmod(0o755)
    return made


def load(work: Checkout) -> tuple[int, str]:
    hosts = "".join(f"{name} {LOCAL}\n" for name in ("n1", "n2"))
    (work.folder / "inventory.ini").write_text(f"[swarm]\n{hosts}")
    tasks = work.folder / "load.yml"  # whose files stand in a folder of the test's own
    real = (Path(__file__).parents[2] / "roles/stack/tasks/load.yml").read_text()
    for there in ("/var/lib/lyttle-ops", "/var/tmp"):
        real = real.replace(there, str(work.folder / "there"))
    tasks.write_text(real)
    (work.folder / "there").mkdir()
    play = {
        "hosts": "n1",
        "gather_facts": False,
        "become": True,
        "become_method": "ansible.builtin.su",
        "environment": {"PATH": f"{work.folder}/{{{{ item | default(inventory_hostname) }}}}:/usr/bin:/bin"},
        "vars": {"stack_found": {"image": "lyttle-ops:1"}},
        "tasks": [{"ansible.builtin.import_tasks": str(tasks)}],
    }
    temporary = work.folder / "temporary"
    temporary.mkdir()
    return work.play([play], "-vvv", ANSIBLE_BECOME_ALLOW_SAME_USER="true", TMPDIR=str(temporary))


def left(work: Checkout) -> list[Path]:
    return [*(work.folder / "there").iterdir(), *(work.folder / "temporary").glob("lyttle-*")]


def test_it_is_brought_as_a_file_and_nothing_is_left(work: Checkout) -> None:
    code, said = load(work)
    assert code == 0, said
    assert gzip.decompress((work.folder / "loaded").read_bytes()) == b"content\n"
    assert "slurp" not in said  # which holds it in memory, on both sides
    assert left(work) == []
    assert "changed=1 " in said  # the image on n2


def test_nothing_is_left_after_a_failure_either(work: Checkout) -> None:
    docker = work.folder / "n1" / "docker"
    docker.write_text(docker.read_text().replace("echo content", "echo half; exit 1"))
    code, said = load(work)
    assert code == 2, said
    assert left(work) == []
    assert not (work.folder / "loaded").exists()

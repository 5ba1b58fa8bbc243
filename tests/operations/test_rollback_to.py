"""What --to names: a release of the history, or an image that was never deployed here; numbers may be either."""

import base64
import json
from pathlib import Path

import pytest
import yaml

from tests.support.fake_engine import fake_engine
from tests.support.operator import ROOT, checkout

TASKS = (
    "Find the release to go back to",
    "Go by that release",
    "See that its image is there",
    "Assert that the release can be deployed",
)


@pytest.fixture
def engine() -> dict[str, object]:
    release = {
        "number": 1, "result": "succeeded", "image": "lyttle-ops:20240501", "version": "20240501", "specs": {},
        "inputs": {"variables": {}}, "inputs_digest": "",
    }  # fmt: skip
    data = base64.b64encode(json.dumps(release).encode()).decode()
    tags = {tag: {"Id": f"sha256:{tag}", "RepoTags": [f"lyttle-ops:{tag}-{tag}"]} for tag in ("20240501", "20240601")}
    return {
        "/configs": [{"ID": "c1", "Spec": {"Name": "lyttlenginx_release_1", "Data": data}}],
        "/services": [],
        **{f"/images/lyttle-ops%3A{tag}/json": about for tag, about in tags.items()},
    }


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("20240501", "it is lyttle-ops:20240501-20240501, release 1."),
        ("20240601", "it is lyttle-ops:20240601-20240601, no release."),
        ("1", "it is lyttle-ops:20240501-20240501, release 1."),
        ("99", "There is no release or version 99 in the history; `lyttle-ops history` shows all. There is no image"),
    ],
)
def test_a_number_is_a_version_a_release_or_a_tag(
    tmp_path: Path, engine: dict[str, object], to: str, said: str
) -> None:
    work, role = checkout(tmp_path, ["n1"]), ROOT / "roles/stack"
    tasks = [task for task in yaml.safe_load((role / "tasks/rollback.yml").read_text()) if task["name"] in TASKS]
    assert len(tasks) == len(TASKS)
    found = "it is {{ stack_found.image }}, {{ 'release %s' % release.number if release else 'no release' }}."
    play = {
        "hosts": "n1",
        "gather_facts": False,
        "vars": {
            "stack_to": to,
            "stack_kind": "version",
            "stack_registry_username": "",
            "stack_registry_password": "",
            "release": "{{ stack_known.release }}",
        },
        "tasks": [*tasks, {"ansible.builtin.fail": {"msg": found}}],
    }
    (work.folder / "playbooks/rollback.yml").write_text(yaml.safe_dump([play]))
    with fake_engine(tmp_path / "docker.sock", engine) as host:
        library = {"ANSIBLE_LIBRARY": str(role / "library"), "ANSIBLE_MODULE_UTILS": str(role / "module_utils")}
        done = work.run("rollback", DOCKER_HOST=host, **library)
    assert said in " ".join(done.stderr.split())

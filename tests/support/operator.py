"""A checkout of a test's own: the real package, playbooks of the test, hosts that are this machine."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
# No password, no ssh: Ansible's modules run here.
LOCAL = f"ansible_connection=local ansible_python_interpreter={sys.executable}"


@dataclass(frozen=True)
class Checkout:
    """What the operator works in; its runs are kept in `state`."""

    folder: Path
    state: Path

    @property
    def runs(self) -> list[Path]:
        return sorted((self.state / "lyttle-ops" / "runs").iterdir())

    def environment(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "LYTTLE_"))}
        return {**clean, "PYTHONPATH": str(self.folder), "XDG_STATE_HOME": str(self.state), "TERM": "xterm", **more}

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "lyttle_ops.cli", *arguments]

    def run(
        self, *arguments: str, stdin: str | None = None, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            cwd=cwd or self.folder,
            env=self.environment(**environment),
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def play(self, plays: Sequence[object], *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit code and words of ansible-playbook on plays of a test, with the role stack's modules."""
        (self.folder / "play.yml").write_text(yaml.safe_dump(list(plays), sort_keys=False))
        stack = ROOT / "roles" / "stack"
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory.ini", *arguments, "play.yml"],
            cwd=self.folder,
            env={
                **self.environment(ANSIBLE_ROLES_PATH=str(ROOT / "roles"), ANSIBLE_LIBRARY=str(stack / "library")),
                "ANSIBLE_MODULE_UTILS": str(stack / "module_utils"),
                "ANSIBLE_PIPELINING": "true",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def playbook(self, name: str, tasks: Sequence[object], hosts: str = "managers") -> None:
        play = {"name": name, "hosts": hosts, "gather_facts": False, "tasks": list(tasks)}
        (self.folder / "playbooks" / f"{name}.yml").write_text(yaml.safe_dump([play], sort_keys=False))


def checkout(folder: Path, hosts: Sequence[str] = ("n1", "n2")) -> Checkout:
    """Lay one out in `folder`."""
    work, state = folder / "work", folder / "state"
    for name in ("playbooks", "roles"):
        (work / name).mkdir(parents=True)
    (work / "lyttle_ops").symlink_to(ROOT / "lyttle_ops")
    (work / "inventory.example.ini").touch()
    lines = "".join(f"{host} {LOCAL}\n" for host in hosts)
    (work / "inventory.ini").write_text(f"[managers]\n{lines}")
    return Checkout(work, state)


def tell(**data: object) -> dict[str, object]:
    """The task by which a playbook tells the command line something."""
    return {
        "name": "Tell",
        "ansible.builtin.set_stats": {"data": {f"lyttle_{name}": value for name, value in data.items()}},
        "run_once": True,
    }


def fail(message: str, **more: object) -> dict[str, object]:
    return {"name": "Look closely", "ansible.builtin.fail": {"msg": message}, **more}


def sleep(seconds: float | str, name: str = "Wait") -> dict[str, object]:
    """A step that sleeps; a string of `seconds` stands in the command line as it is, to be found there."""
    return {"name": name, "ansible.builtin.command": f"sleep {seconds}"}

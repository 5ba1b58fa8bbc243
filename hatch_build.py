"""Build hook: the wheel carries the playbooks, so that `pip install lyttle-ops[control]` alone can deploy.

Read by hatchling (pyproject.toml, `[tool.hatch.build.targets.wheel.hooks.custom]`). A hook and not a static
`force-include`, because that would also copy the files into an editable install, where the checkout's own count,
and would fail in the image's build, which leaves them out (.dockerignore: a container runs no Ansible).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Their place in the wheel is lyttle_ops/ansible/<name>: the layout of the checkout, so relative paths hold in both.
CARRIED = ("playbooks", "roles", "ansible.cfg", "docker-compose.swarm.yml", "inventory.example.ini")


class CarryPlaybooks(BuildHookInterface):
    """Adds what the control machine needs to a wheel that is built for an installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files to add; `version` is "standard" or "editable"."""
        if version != "standard":
            return
        for name in CARRIED:
            path = Path(self.root, name)
            if path.exists():
                build_data["force_include"][str(path)] = f"lyttle_ops/ansible/{name}"

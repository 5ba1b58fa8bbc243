"""The role stack's Ansible modules, loaded as Ansible would beside their siblings, for tests of what they conclude."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from unittest.mock import patch

import pytest

_ROLE = Path(__file__).parents[2] / "roles" / "stack"
_UTILS = ("lyttle_engine", "lyttle_proof", "lyttle_tasks")  # each may import the ones before it


def load(name: str) -> ModuleType:
    """The module `name` of roles/stack/library or module_utils; skips without Ansible (the extra [control])."""
    pytest.importorskip("ansible", reason="comes with the extra [control]")
    for each in _UTILS:
        full = f"ansible.module_utils.{each}"
        if full not in sys.modules:
            sys.modules[full] = _load(full, _ROLE / "module_utils" / f"{each}.py")
    if name in _UTILS:
        return sys.modules[f"ansible.module_utils.{name}"]
    return _load(name, _ROLE / "library" / f"{name}.py")


class _Ended(Exception):
    """The module has said what it has to say."""


def call(module: ModuleType, **options: Any) -> dict[str, Any]:
    """What the module answers to these options, as a playbook would see it; `failed` when it fails."""

    class Module:
        check_mode = False

        def __init__(self, argument_spec: dict[str, dict[str, Any]], **_: object) -> None:
            self.params = {name: options.get(name, about.get("default")) for name, about in argument_spec.items()}

        def exit_json(self, **result: Any) -> NoReturn:
            raise _Ended(result)

        def fail_json(self, **result: Any) -> NoReturn:
            raise _Ended({**result, "failed": True})

    with patch.object(module, "AnsibleModule", Module), pytest.raises(_Ended) as ended:
        module.main()
    answer: dict[str, Any] = ended.value.args[0]
    return answer


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

"""The command line: errors are sentences and exit codes, and a command loads only what it needs."""

import subprocess
import sys
from typing import Any, NoReturn

import click
import pytest

from lyttle_ops import cli
from lyttle_ops.errors import LyttleOpsError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LyttleOpsError("the reason"), 1),
        (click.UsageError("the reason"), 2),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "the reason", "/some/file"), 1),
    ],
)
def test_an_error_is_an_exit_code_and_at_most_one_sentence(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(cli.lyttle_ops, "main", fail)
    assert cli.run([]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "the reason" in captured.err or code == 130


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["frobnicate"]) == 2
    assert "frobnicate" in capsys.readouterr().err


def test_help_lists_every_command_and_loads_none() -> None:
    loaded = _modules_after("--help")
    assert not any(
        name.startswith("lyttle_ops.") and name != "lyttle_ops.cli" for name in loaded - {"lyttle_ops.errors"}
    )


def test_local_status_loads_no_web_framework_and_no_acme_client() -> None:
    loaded = _modules_after("local", "status", "--state-dir", "/nonexistent")
    assert "lyttle_ops.local.cluster" in loaded
    assert not {"flask", "acme", "apscheduler", "rich", "alembic"} & loaded


def _modules_after(*arguments: str) -> set[str]:
    program = "import sys; from lyttle_ops import cli; cli.run(sys.argv[1:]); print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("loaded:")[2].split())

"""The operator's commands before any playbook runs: wrong usage, what is missing, and what stays unloaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lyttle_ops import cli


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["deploy", "--version", "1", "--image", "x/y:1"], "only one of them"),
        (["rollback", "--to", "3", "--scale-one"], "only one of them"),
        (["rollback", "--scale-one", "--global"], "--scale-one and --global: only one of them"),
        (["rollback", "--to", ""], "given and empty"),
        (["deploy", "--image", ""], "given and empty"),
        (["deploy", "--version", ""], "given and empty"),
        (["status", "--ask-vault-pass", "--vault-password-file", __file__], "only one of them"),
        (["node", "add"], "Missing argument 'HOST'"),
        (["node", "frobnicate"], "No such command"),
        (["node", "remove", "n1"], "say --yes"),
        (["playbook", "site", "-i"], "Option '-i' requires an argument"),
        (
            ["playbook", "site", "-i", "a", "-i", "b"],
            "Only one inventory can be named, not a and b; a folder holds several",
        ),
        (["playbook", "-i", "a", "site", "--invent=b"], "Only one inventory can be named, not a and b"),
        (["playbook", "site", "-ia", "--", "-i", "b"], "Only one inventory can be named, not a and b"),
        (["playbook", "site", "-vi", "other"], "The inventory stands alone, as -i FILE, not as in -vi"),
        (["playbook", "site", "-CDiother"], "The inventory stands alone, as -i FILE, not as in -CDiother"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inventory.ini").touch()
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_wrong_usage_is_json_where_that_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "inventory.ini").touch()
    assert cli.run(["node", "remove", "n1", "--json", "-i", str(tmp_path / "inventory.ini")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


@pytest.mark.parametrize("command", [["deploy"], ["rollback"], ["status"], ["history"], ["node", "add", "n1"]])
def test_a_missing_inventory_says_what_to_copy(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LYTTLE_INVENTORY", raising=False)
    assert cli.run(command) == 2
    error = capsys.readouterr().err
    assert "there is no inventory inventory.ini: copy " in error
    assert "inventory.example.ini" in error
    monkeypatch.setenv("LYTTLE_INVENTORY", "elsewhere.ini")
    assert cli.run(command) == 2
    assert "there is no inventory elsewhere.ini" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "inventory", "passed"),
    [
        (["site", "-lnginx1", "-tnfs"], "inventory.ini", ["-lnginx1", "-tnfs"]),
        (["site", "-l", "host1", "-lhost1", "-Clvi"], "inventory.ini", ["-l", "host1", "-lhost1", "-Clvi"]),
        (["-i", "other", "site", "--check"], "other", ["--check"]),
        (["site", "-e", "a=-i", "-i", "other", "-v"], "other", ["-e", "a=-i", "-v"]),
        (["site", "-iother"], "other", []),
        (["--inventory", "other", "site"], "other", []),
        (["site", "--inventory=other", "--limit=n1"], "other", ["--limit=n1"]),
        (["site", "--inventory-file", "other"], "other", []),
        (["site", "--inventory-file=other"], "other", []),
        (["site", "--invent", "other"], "other", []),
        (["site", "--", "--help", "-i", "other"], "other", ["--help"]),
    ],
)
def test_a_playbooks_inventory_is_read_and_all_else_passed_on(
    arguments: list[str], inventory: str, passed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ansible_runner", reason="comes with the extra [control]")
    for name in ("inventory.ini", "other"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LYTTLE_INVENTORY", raising=False)
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda program, argv, environment: ran.append(argv))
    assert cli.run(["playbook", *arguments]) == 0
    assert [argv[1:-1] for argv in ran] == [["-i", inventory, *passed]]


def test_without_ansible_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "inventory.ini").touch()
    program = "import sys; sys.modules['ansible_runner'] = None; from lyttle_ops import cli; sys.exit(cli.run())"
    for command in ("deploy", "doctor"):
        done = subprocess.run(
            [sys.executable, "-c", program, command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "pip install 'lyttle-ops[control]'" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_the_containers_node_loads_nothing_of_the_operators_tools() -> None:
    program = (
        "import sys; from lyttle_ops import cli; cli.run(['node', '--help']);"
        "import lyttle_ops.cli.node; print('loaded:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert not {"ansible_runner", "ansible", "pexpect", "rich"} & loaded
    assert "add" in done.stdout
    assert "remove" in done.stdout


def test_node_alone_is_still_what_a_container_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lyttle_ops.cli", "node"], env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "DATABASE_URL" in done.stderr

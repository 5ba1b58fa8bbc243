"""The operator's commands on real Ansible: progress, the reason of a failure, exit codes, JSON, interruption."""

import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.operator import ROOT, Checkout, checkout, fail, sleep, tell
from tests.support.wait import until

RELEASE = {"release": {"number": 7, "version": "1.2.3", "image": "r.test/lyttle-ops:1.2.3"}, "nodes": [], "message": ""}


@pytest.fixture
def work(tmp_path: Path) -> Checkout:
    return checkout(tmp_path)


def test_a_pipe_gets_one_line_for_each_finished_step_and_the_result(work: Checkout) -> None:
    echo = {"name": "Change {{ stack_version }}", "ansible.builtin.command": "true"}
    skipped = {"name": "Never", "ansible.builtin.command": "false", "when": False}
    work.playbook("deploy", [tell(outcome="refused"), echo, skipped, tell(result=RELEASE)])
    done = work.run("deploy", "--version", "1.2.3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("changed     Change 1.2.3 (n1, n2) ")
    assert lines[1] == "release 7: r.test/lyttle-ops:1.2.3 is deployed"
    assert "Never" not in done.stdout
    assert done.stderr == ""


def test_a_failure_names_host_step_and_reason_and_where_the_log_is(work: Checkout) -> None:
    noise = {"name": "Noise", "ansible.builtin.command": "seq 1 500", "changed_when": False}
    work.playbook("deploy", [noise, fail("The disk of n2 is full.", when="inventory_hostname == 'n2'")])
    done = work.run("deploy")
    assert done.returncode == 1
    (run,) = work.runs
    assert done.stderr.splitlines() == [
        "error: n2: The disk of n2 is full.",
        "       in the step: Look closely",
        f"The full log: {run / 'log'}",
    ]
    assert len(done.stdout.splitlines()) == 3  # the two steps, and the reason below the second
    assert "TASK [Noise]" in (run / "log").read_text()
    assert stat.S_IMODE(run.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        ("refused", 3, "Nothing was changed."),
        ("failed", 1, None),
        ("put_back", 4, "The old version was put back and serves."),
    ],
)
def test_the_playbooks_own_word_is_the_exit_code(work: Checkout, outcome: str, code: int, said: str | None) -> None:
    work.playbook("rollback", [tell(outcome="refused"), tell(outcome=outcome), fail("No such release.")])
    done = work.run("rollback", "--to", "9")
    assert done.returncode == code
    assert "n1, n2: No such release." in done.stderr
    assert said is None or said in done.stderr


def test_a_rescue_is_progress_and_what_it_ends_with_is_the_reason(work: Checkout) -> None:
    block = {
        "block": [{"name": "Prove n2", "ansible.builtin.command": "false"}],
        "rescue": [tell(outcome="put_back"), fail("n2 answered 502; the old version serves again.")],
    }
    work.playbook("deploy", [block])
    done = work.run("deploy", "--json")
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "put_back"
    assert {failure["step"] for failure in error["failures"]} == {"Prove n2"}
    assert {failure["host"] for failure in error["failures"]} == {"n1", "n2"}
    assert error["message"] == "n2 answered 502; the old version serves again."


def test_a_host_that_is_lost_in_the_middle_leaves_no_doubt_about_the_rest(work: Checkout) -> None:
    away = {"ansible.builtin.set_fact": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}}
    lost = [away, {"name": "Prove n2", "ansible.builtin.command": "true"}]
    block = {"block": lost, "rescue": [fail("put back")], "when": "inventory_hostname == 'n1'"}
    work.playbook("deploy", [tell(outcome="failed"), block])
    done = work.run("deploy")
    assert done.returncode == 1
    assert "error: n1: Failed to connect to the host via ssh" in done.stderr
    assert "Swarm goes on by itself with an update it has begun" in done.stderr
    document = json.loads(work.run("deploy", "--json").stdout)
    assert "the same command again goes on" in document["error"]["message"]
    work.playbook("node_add", [tell(outcome="failed"), block])
    assert "Swarm goes on" not in work.run("node", "add", "n2").stderr


def test_json_is_one_document_on_standard_output_and_progress_goes_beside(work: Checkout) -> None:
    work.playbook("deploy", [sleep(0, "Something"), tell(result=RELEASE)])
    done = work.run("deploy", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == RELEASE
    assert "Something (n1, n2)" in done.stderr


def test_a_look_shows_no_steps_in_a_pipe_and_its_result_although_a_host_is_away(work: Checkout) -> None:
    with (work.folder / "inventory.ini").open("a") as inventory:
        inventory.write("n3 ansible_host=127.0.0.1 ansible_port=1 ansible_ssh_common_args='-o ConnectTimeout=2'\n")
    record = {"number": 3, "action": "deploy", "version": "1.0", "result": "failed", "message": "It broke.",
              "started_at": "2026-01-02T03:04:05Z", "operator": "ann@desk", "reason": "why not"}  # fmt: skip
    work.playbook("history", [sleep(0, "Read"), tell(result={"releases": [record]})])
    done = work.run("history")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "number  action  version  result  started (UTC)     by        reason",
        "3       deploy  1.0      failed  2026-01-02 03:04  ann@desk  why not",
        "3: It broke.",
    ]
    assert done.stderr.startswith("n3: Failed to connect to the host via ssh")


def test_a_playbook_that_cannot_begin_changes_nothing_and_says_why(work: Checkout) -> None:
    work.playbook("deploy", [tell(result=RELEASE)], hosts="nobody")
    done = work.run("deploy")
    assert done.returncode == 3
    assert "has no host for 'nobody'" in done.stderr
    (work.folder / "playbooks" / "deploy.yml").write_text("- hosts: managers\n  taskz: []\n")
    done = work.run("deploy")
    assert done.returncode == 3
    assert "'taskz' is not a valid attribute for a Play" in done.stderr


def test_a_terminal_sees_the_step_and_each_host_live(work: Checkout) -> None:
    work.playbook("deploy", [sleep(1.5, "Prove the new version"), tell(result=RELEASE)])
    with Terminal(work, "deploy") as terminal:
        terminal.expect("Prove the new version")
        terminal.expect("running")
        assert terminal.end() == 0
    text = terminal.text
    assert "n1" in text
    assert "changed" in text
    assert "release 7: r.test/lyttle-ops:1.2.3 is deployed" in text


@pytest.mark.parametrize("outcome", ["refused", "failed"])
def test_ctrl_c_ends_ansible_and_tells_where_the_cluster_stands(work: Checkout, outcome: str) -> None:
    mark = f"300.{os.getpid()}"
    work.playbook("deploy", [tell(outcome=outcome), sleep(mark, "Prove the new version"), tell(result=RELEASE)])
    with Terminal(work, "deploy") as terminal:
        until(lambda: _processes(mark), 30)
        began = time.monotonic()
        terminal.type("\x03")
        assert terminal.end() == 130
    assert time.monotonic() - began < 15
    assert not _processes(mark)
    assert not _processes(str(work.folder))
    text = " ".join(terminal.text.split())
    if outcome == "refused":
        assert "Nothing was changed." in text
    else:
        assert "Swarm goes on by itself" in text
        assert "the next command from this machine takes it over" in text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_no_ansible_outlives_the_command(work: Checkout, number: int) -> None:
    mark = f"301.{os.getpid()}"
    work.playbook("deploy", [sleep(mark), tell(result=RELEASE)])
    with subprocess.Popen(
        work.argv("deploy"), cwd=work.folder, env=work.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as command:
        until(lambda: _processes(mark), 30)
        command.send_signal(number)
        assert command.wait(20) == (-9 if number == signal.SIGKILL else 130)
    until(lambda: not _processes(mark) and not _processes(str(work.folder)), 20)


def test_a_terminal_that_closes_ends_the_deploy_in_order(work: Checkout) -> None:
    mark = f"302.{os.getpid()}"
    work.playbook("deploy", [sleep(mark), tell(result=RELEASE)])
    with Terminal(work, "deploy") as terminal:
        until(lambda: _processes(mark), 30)
        assert terminal.hang_up() == 130
    until(lambda: not _processes(mark) and not _processes(str(work.folder)), 20)


def test_a_reader_that_leaves_does_not_disturb_the_deploy(work: Checkout) -> None:
    witness = work.folder / "witness"
    touch = {"name": "Finish", "ansible.builtin.file": {"path": str(witness), "state": "touch"}}
    work.playbook("deploy", [sleep(0, "One"), sleep(1, "Two"), touch, tell(result=RELEASE)])
    with subprocess.Popen(
        work.argv("deploy"), cwd=work.folder, env=work.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        assert b"One" in command.stdout.readline()
        command.stdout.close()
        assert command.wait(60) == 0
    assert witness.exists()


def test_a_vault_password_opens_variables_and_is_left_nowhere(work: Checkout, tmp_path: Path) -> None:
    (work.folder / "group_vars").mkdir()
    secrets = work.folder / "group_vars" / "all.yml"
    secrets.write_text("hidden: the-secret\n")
    word = tmp_path / "word"
    word.write_text("open-sesame\n")
    vault = [*_ansible("ansible-vault"), "encrypt", "--vault-password-file", str(word), str(secrets)]
    subprocess.run(vault, check=True, capture_output=True)
    seen = {"name": "Use it", "ansible.builtin.assert": {"that": "hidden == 'the-secret'", "quiet": True}}
    work.playbook("deploy", [seen, tell(result=RELEASE)])
    done = work.run("deploy")
    assert done.returncode != 0
    assert "no vault secrets" in done.stderr
    assert work.run("deploy", "--vault-password-file", str(word)).returncode == 0
    with Terminal(work, "deploy", "--ask-vault-pass") as terminal:
        terminal.expect("Vault password:")
        terminal.type("open-sesame\n")
        assert terminal.end() == 0
    assert "open-sesame" not in terminal.text
    assert not _holds(work.state, "open-sesame")


def test_a_runs_folder_keeps_nothing_of_the_persons_environment(work: Checkout) -> None:
    work.playbook("deploy", [tell(result=RELEASE)])
    assert work.run("deploy", TOKEN="s3cret-t0ken").returncode == 0
    assert not _holds(work.state, "s3cret-t0ken")


def test_host_keys_are_checked_unless_the_person_says_otherwise(work: Checkout) -> None:
    look = {
        "name": "Look",
        "ansible.builtin.assert": {"that": "lookup('ansible.builtin.config', 'HOST_KEY_CHECKING')", "quiet": True},
    }
    work.playbook("deploy", [look, tell(result=RELEASE)])
    assert work.run("deploy").returncode == 0
    assert work.run("deploy", ANSIBLE_HOST_KEY_CHECKING="False").returncode == 1


def test_the_newest_runs_of_each_playbook_are_kept_and_running_ones(work: Checkout) -> None:
    runs = work.state / "lyttle-ops" / "runs"
    for number in range(25):
        (runs / f"20200101T0000{number:02d}Z-deploy").mkdir(parents=True)
    (runs / "20200101T000000Z-deploy" / "pid").write_text(str(os.getpid()))
    (runs / "20200101T000000Z-status").mkdir()
    work.playbook("deploy", [tell(result=RELEASE)])
    assert work.run("deploy").returncode == 0
    left = [run.name for run in work.runs if run.name.endswith("-deploy")]
    assert len(left) == 21
    assert left[0] == "20200101T000000Z-deploy"  # it runs
    assert left[1] == "20200101T000006Z-deploy"
    assert (runs / "20200101T000000Z-status").exists()


def test_the_playbook_learns_who_deploys_and_why(work: Checkout) -> None:
    said = {"who": "{{ deploy_owner }}", "why": "{{ deploy_reason }}", "node": "{{ node }}"}
    work.playbook("node_add", [tell(result=said)])
    done = work.run("node", "add", "n2", "--reason", "more traffic", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    who = result["who"] if isinstance(result["who"], dict) else json.loads(result["who"])
    assert result["why"] == "more traffic"
    assert result["node"] == "n2"
    assert "@" in who["owner"]
    assert who["start_time"].startswith(Path("/proc/sys/kernel/random/boot_id").read_text().strip() + ":")


def test_a_persons_ansible_cfg_counts(work: Checkout) -> None:
    (work.folder / "ansible.cfg").write_text("[defaults]\nhost_key_checking = false\n[connection]\npipelining = true\n")
    said = [f"{word} lookup('ansible.builtin.config', '{name}')" for word, name in
            (("not", "HOST_KEY_CHECKING"), ("", "ANSIBLE_PIPELINING"))]  # fmt: skip
    work.playbook("deploy", [{"name": "Look", "ansible.builtin.assert": {"that": said}}, tell(result=RELEASE)])
    done = work.run("deploy")
    assert done.returncode == 0, done.stderr


def test_the_installed_wheel_brings_what_it_runs(work: Checkout, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "wheel")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    (work.folder / "lyttle_ops").unlink()
    with zipfile.ZipFile(wheel) as archive:  # all that an installation does with a wheel of Python alone
        archive.extractall(work.folder)
    (work.folder / "inventory.ini").write_text("[workers]\nn1 ansible_connection=local\n")
    done = work.run("deploy")
    assert done.returncode == 3
    assert "has no host for 'managers'" in done.stderr
    done = work.run("status", "-i", "nowhere.ini")
    assert f"copy {work.folder / 'lyttle_ops' / 'ansible' / 'inventory.example.ini'} there" in done.stderr
    # Every playbook finds its roles and modules, from any folder.
    example = work.folder / "lyttle_ops" / "ansible" / "inventory.example.ini"
    listed = [line.split()[0] for line in work.run("playbook").stdout.splitlines()]
    assert listed == sorted(file.stem for file in (ROOT / "playbooks").glob("*.yml") if file.stem != "requirements")
    for name in listed:
        done = work.run("playbook", "-i", str(example), name, "--syntax-check", cwd=tmp_path)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def test_a_playbook_by_name_has_the_arguments_output_and_exit_code_of_ansible(work: Checkout) -> None:
    work.playbook("site", [{"name": "Fail", "ansible.builtin.fail": {"msg": "{{ why }}"}}])
    done = work.run("playbook", "site", "-e", "why=asked", "--limit", "n1")
    assert done.returncode == 2
    assert "TASK [Fail]" in done.stdout
    assert "asked" in done.stdout
    assert "n2" not in done.stdout
    wrong = work.run("playbook", "sit")
    assert wrong.returncode == 2
    assert "there is no playbook sit" in wrong.stderr
    missing = work.run("playbook", "site", "-i", "nowhere.ini")
    assert missing.returncode == 2
    assert "there is no inventory nowhere.ini" in missing.stderr


class Terminal:
    """The command on a terminal of its own, as a person sees it."""

    def __init__(self, work: Checkout, *arguments: str) -> None:
        self.text = ""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(work.folder)
            argv = work.argv(*arguments)
            os.execve(argv[0], argv, work.environment(COLUMNS="100", LINES="40"))

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)  # hangs up, which ends whatever is left

    def hang_up(self) -> int:
        """Close the terminal; the command's exit code."""
        os.close(self._fd)
        self._fd = -1
        status = until(lambda: os.waitpid(self._pid, os.WNOHANG)[1:] if _ended(self._pid) else None, 30, "its end")
        return os.waitstatus_to_exitcode(status[0])

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, text: str) -> None:
        self._read(lambda: text in self.text)
        assert text in self.text, self.text

    def end(self) -> int:
        """Read to the end; the exit code."""
        self._read(lambda: False)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not enough() and time.monotonic() < deadline:
            if not select.select([self._fd], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # the other end closed
                return
            self.text += data.decode(errors="replace")


def _ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"


def _processes(mark: str) -> list[str]:
    """Command lines of processes that hold `mark`, but ours."""
    return [line for line in _command_lines() if mark in line]


def _command_lines() -> Iterator[str]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                yield Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


def _holds(folder: Path, text: str) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text in file.read_text(errors="replace")]


def _ansible(name: str) -> list[str]:
    from lyttle_ops.deploy.runs import program

    found = program(name)
    assert found is not None
    return [found]

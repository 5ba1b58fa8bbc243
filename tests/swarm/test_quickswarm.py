"""The quick swarm of tests and benchmarks: real, and gone afterwards."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import engine, files, shell
from tests.support.quickswarm import QuickSwarm
from tests.support.wait import until

pytestmark = pytest.mark.timeout(300)


def running_tasks(swarm: QuickSwarm) -> set[str]:
    words = ("service", "ps", "idle", "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}")
    return {line.split()[0] for line in swarm.manager.docker(*words).splitlines() if "Running" in line}


def leftovers(folder: Path) -> list[str]:
    """What of a swarm in `folder` is still there: processes, devices, mounts, control groups."""
    bridge = f"ly{files.identity(str(folder))}"
    processes = shell.run(["ps", "-eo", "pid,args"]).splitlines()
    found = [line for line in processes if str(folder) in line and "pytest" not in line]
    found += [line for line in shell.run(["ip", "-brief", "link"]).splitlines() if line.startswith(bridge)]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    return found + [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/lyttle-{bridge[2:]}")]


def test_a_swarm_of_two_runs_tasks_survives_a_power_cut_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with QuickSwarm(folder, nodes=2) as swarm:
        for node in swarm.nodes:
            node.docker("import", str(engine.base_archive()), "base")
        swarm.manager.docker(
            *("service", "create", "--detach", "--name", "idle", "--mode", "global", "--no-resolve-image"),
            *("--network", "host", "base", "sleep", "infinity"),
        )
        until(lambda: running_tasks(swarm) == {"n1", "n2"}, 30, "a task on each node")
        second = swarm.nodes[1]
        second.power_cut()
        until(lambda: "Down" in swarm.manager.docker("node", "ls"), 60, "n2 is missed")
        second.start()
        until(lambda: "Down" not in swarm.manager.docker("node", "ls"), 60, "n2 is back")
        until(lambda: running_tasks(swarm) == {"n1", "n2"}, 30, "a task on each node again")
    assert leftovers(folder) == []
    assert not folder.exists()


def test_one_that_was_killed_leaves_no_process_and_the_next_clears_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    program = (
        "import sys, time; from pathlib import Path; from tests.support.quickswarm import QuickSwarm\n"
        "with QuickSwarm(Path(sys.argv[1]), nodes=1) as swarm: print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, cwd=files.CHECKOUT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
    until(lambda: not any("dockerd" in line for line in leftovers(folder)), 10, "its processes are gone")
    started = time.monotonic()
    with QuickSwarm(folder, nodes=1) as swarm:
        assert "n1" in swarm.manager.docker("node", "ls")
    assert time.monotonic() - started < 60
    assert leftovers(folder) == []

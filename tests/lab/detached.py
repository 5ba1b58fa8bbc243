"""Processes that outlive the command that started them; a file says which one it is.

The process writes that file itself before it becomes what was asked for, so that no interruption of its starter
leaves one that nobody knows. It has no parent here: nothing to reap, and a terminal's Ctrl-C does not reach it.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from lyttle_ops.local import processes
from tests.lab import shell

# $0: the file, $1: the log, then the command. `started` is what lyttle_ops.local.processes knows a process by.
_START = """\
boot=$(cat /proc/sys/kernel/random/boot_id)
ticks=$(cut -d' ' -f22 /proc/$$/stat)
printf '{"pid": %d, "started": "%s:%s"}' $$ "$boot" "$ticks" >"$0"
log=$1
shift
exec "$@" >>"$log" 2>&1 </dev/null
"""


def start(argv: Sequence[str], *, record: Path, log: Path, folder: Path) -> processes.Process | None:
    """Start `argv` in a session of its own, working in `folder`; None when it ended at once.

    Raises CommandFailed when the program is not installed.
    """
    program = shutil.which(argv[0], path=shell.PATH)
    if program is None:
        raise shell.CommandFailed(f"{argv[0]} is not installed: run `.ci/setup lab`")
    record.unlink(missing_ok=True)
    words = ["setsid", "--fork", "sh", "-c", _START, str(record), str(log), program, *argv[1:]]
    shell.run(["env", f"--chdir={folder}", *words], timeout=30)
    return find(record)


def find(record: Path) -> processes.Process | None:
    """The process that `record` is about, while it runs."""
    process = _read(record)
    return process if process is not None and process.is_alive() else None


def stop(record: Path, grace: float) -> None:
    """End the process and what it started, also what it left behind; SIGKILL after `grace` seconds."""
    process = _read(record)
    if process is not None:
        processes.stop([process], grace)
    record.unlink(missing_ok=True)


def kill(record: Path) -> None:
    """SIGKILL the process and what it started, also what it left behind."""
    process = _read(record)
    if process is not None:
        processes.kill(process)
    record.unlink(missing_ok=True)


def _read(record: Path) -> processes.Process | None:
    try:
        return processes.Process(**json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return None

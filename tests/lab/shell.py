"""Commands of this machine: they either work or raise with what they said."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence

# A user's PATH often lacks what only root calls.
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


class CommandFailed(RuntimeError):
    """A command of this machine ended with an error or did not end in time."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with the system's programs on PATH and messages in plain English."""
    return {**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", **(extra or {})}


def run(
    argv: Sequence[str], *, timeout: float = 600, check: bool = True, stdin: str | None = None, **extra: str
) -> str:
    """Standard output of `argv`; `extra` are environment variables.

    Raises CommandFailed (unless `check` is off) with the last of what it said on standard error.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment(extra),
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{shlex.join(argv)} did not end within {timeout:.0f} s") from None
    except FileNotFoundError:
        raise CommandFailed(f"{argv[0]} is not installed: run `.ci/setup lab`") from None
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise CommandFailed(f"{shlex.join(argv)} failed with {done.returncode}: {said}")
    return done.stdout

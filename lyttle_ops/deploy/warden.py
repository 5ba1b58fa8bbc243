"""Runs one ansible-playbook and sees to its end: `python warden.py PARENT PIDFILE ansible-playbook ARGUMENT ...`.

The command line starts this instead of ansible-playbook, because Ansible outlives its caller: pexpect makes it ignore
SIGHUP, and its workers lead sessions of their own, so no process group holds all of them. The warden is a child
subreaper (prctl(2)): whatever ansible-playbook leaves behind becomes a child of the warden, which can find and end it.

- SIGINT (one Ctrl-C): ansible-playbook gets the SIGINT and GRACE seconds to end, then everything is killed.
- SIGTERM, SIGHUP (a second Ctrl-C, a lost terminal) and the death of PARENT (its pid), whatever killed it: everything
  is killed at once.
- ansible-playbook ends by itself: its exit code is the warden's. Idle ssh connections that it keeps for the next run
  (ControlPersist) are left to time out.

What runs on the hosts by ssh is not reached: without a terminal, sshd lets a command go on when its client is gone.
Standard library only, and nothing of lyttle_ops: it runs as a file.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

GRACE = 10.0  # seconds ansible-playbook has after SIGINT
_POLL = 0.1  # seconds between looks at the parent and at the signals
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(parent: int, pid_file: str, command: list[str]) -> int:
    """Run `command` and return its exit code, 128 + n when signal n ended it."""
    received: set[int] = set()
    for number in _SIGNALS:
        signal.signal(number, lambda got, _frame: received.add(got))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_CHILD_SUBREAPER, 1), (_PR_SET_PDEATHSIG, signal.SIGTERM)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl failed")
    with open(pid_file, "w") as file:
        file.write(str(os.getpid()))
    child = subprocess.Popen(command, preexec_fn=_default_signals)
    deadline: float | None = None
    while True:
        try:
            code = child.wait(_POLL)
            break
        except subprocess.TimeoutExpired:
            late = deadline is not None and time.monotonic() > deadline
        # The look at the parent covers a death before the prctl.
        if late or received & {signal.SIGTERM, signal.SIGHUP} or os.getppid() != parent:
            received.add(signal.SIGTERM)
            child.kill()
            code = child.wait()
            break
        if signal.SIGINT in received and deadline is None:
            child.send_signal(signal.SIGINT)
            deadline = time.monotonic() + GRACE
    if received:
        _kill_children()
    return 128 - code if code < 0 else code


def _default_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _kill_children() -> None:
    """SIGKILL to all children until there are none: what each leaves behind becomes ours and is next."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def _children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # the name in parentheses may hold anything (proc(5))
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(entry))
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))

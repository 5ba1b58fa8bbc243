"""`python -m tests.lab up|down|status|snapshot`: a person's way to the lab; needs root."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from lyttle_ops.errors import LyttleOpsError
from tests.lab import files, rootfs
from tests.lab.host import HostError
from tests.lab.lab import DEFAULT, HOSTS, MEMORY, Lab, LabError
from tests.lab.network import NoSubnet
from tests.lab.services import ServiceFailed
from tests.lab.shell import CommandFailed


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab", description="Three fresh Debian hosts on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring it up, or up again with the disks it has")
    up.add_argument("--hosts", type=int, default=HOSTS, help="how many (default: %(default)s)")
    up.add_argument("--memory", default=MEMORY, help="of each (default: %(default)s)")
    up.add_argument("--suite", default=rootfs.SUITE, help="Debian release of the hosts (default: %(default)s)")
    up.add_argument("--fresh", action="store_true", help="throw the disks away first")
    up.add_argument("--from", dest="snapshot", metavar="SNAPSHOT", help="with the disks that `snapshot` kept")
    commands.add_parser("down", help="remove it: processes, devices, rules, disks")
    commands.add_parser("status", help="what runs of it; exit code 1 when something does not")
    snapshot = commands.add_parser("snapshot", help="keep its disks for `up --from`; restarts the hosts")
    snapshot.add_argument("snapshot")
    for command in commands.choices.values():
        command.add_argument("--name", default=DEFAULT, help="(default: %(default)s)")
    arguments = parser.parse_args(words)
    if os.geteuid() != 0:
        print("lab: devices, rules and Debian roots need root: run it with sudo", file=sys.stderr)
        return 2
    # A plain `kill` unwinds as Ctrl-C does, so that nothing stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    except (LabError, HostError, CommandFailed, ServiceFailed, NoSubnet, LyttleOpsError, ValueError) as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1


def _up(words: argparse.Namespace) -> int:
    started = time.monotonic()
    lab = Lab.up(
        words.name,
        hosts=words.hosts,
        memory=words.memory,
        suite=words.suite,
        fresh=words.fresh,
        snapshot=words.snapshot,
    )
    print(f"lab: {lab.name} is up after {time.monotonic() - started:.0f} s")
    for host in lab.hosts:
        print(f"  {host.name}  {host.address}  ssh -i {lab.folder / 'ssh_key'} root@{host.address}")
    print(f"  inventory  {lab.inventory}")
    return 0


def _down(words: argparse.Namespace) -> int:
    try:
        Lab.load(words.name).down()
    except LabError:
        print(f"lab: there is no {words.name}")
    return 0


def _status(words: argparse.Namespace) -> int:
    lab = Lab.load(words.name)
    for host in lab.hosts:
        process = host.process
        print(f"{host.name}  {host.address}  {f'on ({process.pid})' if process else 'off'}")
    for name, pid in lab.services.running().items():
        print(f"{name}  {f'on ({pid})' if pid else 'off'}")
    return 0 if lab.is_up() else 1


def _snapshot(words: argparse.Namespace) -> int:
    Lab.load(words.name).save(words.snapshot)
    print(f"lab: kept in {files.CACHE / 'snapshots' / words.snapshot}")
    return 0


_COMMANDS = {"up": _up, "down": _down, "status": _status, "snapshot": _snapshot}

if __name__ == "__main__":
    sys.exit(main())

"""`lyttle-ops local`: a whole cluster on this machine."""

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from lyttle_ops.local import hints
from lyttle_ops.local.cluster import LocalCluster
from lyttle_ops.local.folders import Folders, default_state_folder
from lyttle_ops.local.layout import DEFAULT_BASE, Layout


def _folders(_context: click.Context, _parameter: click.Parameter, value: Path) -> Folders:
    return Folders(value.absolute())


_state_dir = click.option(
    "--state-dir",
    "folders",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_state_folder,
    callback=_folders,
    show_default=str(default_state_folder()),
    help="Where its files are kept.",
)


@click.group()
def local() -> None:
    """A whole cluster on this machine: PostgreSQL, a CA, a demo upstream and nodes, each on an address of its own."""


@local.command()
@click.option("--nodes", default=3, show_default=True, metavar="N", help="How many nodes.")
@click.option("--detach", is_flag=True, help="Return when every node is ready and leave everything running.")
@click.option("--base", default=DEFAULT_BASE, show_default=True, help="First three octets of all addresses.")
@click.option("--port-offset", default=0, metavar="N", help="Added to every port.")
@click.option("--acme-directory", metavar="URL", help="What the nodes take for the CA, as a proxy in front of it.")
@click.option(
    "--acme-ca-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Root of that CA's HTTPS."
)
@click.option("--ca-delays", is_flag=True, help="The CA validates as slowly as a real one.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A further setting of every node.")
@click.option("--timeout", default=90.0, show_default=True, help="Seconds the nodes have to become ready.")
@_state_dir
def up(
    folders: Folders,
    nodes: int,
    detach: bool,
    base: str,
    port_offset: int,
    acme_directory: str | None,
    acme_ca_file: Path | None,
    ca_delays: bool,
    settings: tuple[str, ...],
    timeout: float,
) -> None:
    """Start the cluster. Ctrl-C stops everything, unless --detach."""
    if (acme_directory is None) != (acme_ca_file is None):
        raise click.UsageError("--acme-directory and --acme-ca-file go together")
    layout = Layout(base, nodes, port_offset)
    with _stop_signals() as stop:
        cluster = LocalCluster(folders, say=_say, interrupted=stop)
        try:
            with cluster.up(
                layout,
                detached=detach,
                acme_directory=acme_directory,
                acme_ca_file=acme_ca_file.absolute() if acme_ca_file else None,
                ca_delays=ca_delays,
                settings=dict(_pair(setting) for setting in settings),
                ready_timeout=timeout,
            ):
                _say(_next_steps(cluster, layout))
                if detach:
                    look, end = (hints.command(folders, word) for word in ("status", "down"))
                    _say(f"It goes on running: `{look}`, `{end}`.")
                    return
                from lyttle_ops.cli.table import watch  # rich and the database driver, for this command only

                watch(cluster, stop)
                _say("stopping …")
        except Exception:
            # A Ctrl-C reaches initdb too, whose failure is then no news.
            if not stop.is_set() or cluster.runs():
                raise
            _say("interrupted; what had been started is stopped")
            raise click.Abort from None
        _say("stopped; nothing is left running, and the data is kept for the next start")


@local.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_state_dir
def status(folders: Folders, as_json: bool) -> int:
    """Where everything is, how the nodes and the services beside them are.

    The exit code is 1 when something is wrong. With --json it is 0 as long as a cluster runs: programs read the rest.
    """
    cluster = LocalCluster(folders)
    found = cluster.status()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return 0
    health = cluster.health()
    for node in found["nodes"]:
        status = health.nodes[node["name"]]
        state = "stopped" if status.pid is None else "ready" if status.ready else "not ready"
        role = "leader" if status.leader else ""
        failing = ", ".join(check for check, _ in status.problems) if state == "not ready" else ""
        state += f" ({failing})" if failing else ""
        click.echo(f"{node['name']:<5} {state:<10} {role:<7} {node['api']}  {node['http']}  {node['https']}")
        for check, message in status.problems if failing else ():
            click.echo(f"      {check}: {message}")
    for service in health.services:
        click.echo(f"{service.name:<13} {service.condition:<15} {service.where}, log {service.log}")
    click.echo(f"{'CA root':<13} {found['ca']['root']}")
    click.echo(f"{'admin':<13} {found['admin']['username']}, password in {found['admin']['password_file']}")
    if health.ok:
        return 0
    click.echo(f"Something is wrong: {health.way_out(folders)}")
    return 1


@local.command()
@click.option("--wipe", is_flag=True, help="Also remove its data.")
@_state_dir
def down(folders: Folders, wipe: bool) -> None:
    """Stop the cluster, whoever started it. Its data stays for the next start."""
    ended = LocalCluster(folders, say=_say).down(wipe)
    said = "stopped" if ended.ran else "no local cluster was running"
    if ended.wiped:
        said += f", its data in {folders.state} is removed"
        if ended.left:
            said += f"; what is not the cluster's stays there: {', '.join(ended.left)}"
    elif wipe:
        said += f", and there was nothing to remove: {folders.state} does not exist"
    _say(said)


@local.command()
@click.argument("node")
@_state_dir
def kill(folders: Folders, node: str) -> None:
    """Kill NODE and all it started at once, as a power cut would."""
    process = LocalCluster(folders).kill_node(node)
    click.echo(f"{node} (process {process.pid}) was killed")


@local.command()
@click.argument("node")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is ready.")
@_state_dir
def start(folders: Folders, node: str, no_wait: bool) -> None:
    """Start NODE again after it was killed or gave up."""
    process = LocalCluster(folders).start_node(node, wait=not no_wait)
    click.echo(f"{node} {'runs' if no_wait else 'is ready'} (process {process.pid})")


@local.command()
@click.argument("name", metavar="NODE")
@click.option("--follow", "-f", is_flag=True, help="Go on as it grows.")
@_state_dir
def logs(folders: Folders, name: str, follow: bool) -> None:
    """The log of NODE (or of: companions)."""
    file = folders.log(name)
    if not file.is_file():
        raise click.UsageError(f"there is no log {file}")
    sys.stdout.flush()
    os.execvp("tail", ["tail", "-n", "+1", *(["-F"] if follow else []), str(file)])  # noqa: S606 - no shell is wanted


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and a closed terminal set instead of ending this process."""
    stop = threading.Event()

    def request(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    """A line of progress; a reader that left, as `| head` does, must not end what is being started or stopped."""
    try:
        click.echo(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _pair(setting: str) -> tuple[str, str]:
    name, separator, value = setting.partition("=")
    if not separator or not name:
        raise click.UsageError(f"--set takes NAME=VALUE, not {setting!r}")
    name = name.upper()
    # A node works in a folder of its own, where a relative path would be another file.
    return name, os.path.abspath(value) if name.endswith("_FILE") and value else value


def _next_steps(cluster: LocalCluster, layout: Layout) -> str:
    """The URLs and three commands that work as they are pasted; the password stays in its file."""
    found = cluster.status()
    first = layout.node(1)
    login = shlex.quote(str(cluster.folders.secrets / "login.json"))
    root = shlex.quote(found["ca"]["root"])
    proxied = any(
        os.environ.get(name) for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    )
    curl = "curl --noproxy '*'" if proxied else "curl"
    body = json.dumps({"proxy_pass_host": layout.upstream, "domains": "demo.example.test", "ssl": True})
    hosts = " ".join(node.host for node in layout.all_nodes())
    https = layout.node(1).https_port
    return f"""
  API        {"  ".join(node.api for node in layout.all_nodes())}
  HTTPS      {"  ".join(node.https for node in layout.all_nodes())}
  upstream   {layout.upstream}
  admin      {found["admin"]["username"]}, password in {found["admin"]["password_file"]}

1. Log in:

TOKEN=$({curl} -s {first.api}/auth/login -H 'content-type: application/json' -d @{login} \\
  | python3 -c 'import json, sys; print(json.load(sys.stdin)["access_token"])')

2. Add a proxy:

{curl} -s {first.api}/proxy -H "authorization: Bearer $TOKEN" -H 'content-type: application/json' \\
  -d '{body}'

3. Look at its certificate and answer, on each node (the first try may come half a second too early):

for node in {hosts}; do
  echo "== $node"
  {curl} -sSv --retry 8 --retry-all-errors --retry-delay 1 --cacert {root} \\
    --connect-to ::$node:{https} https://demo.example.test/ 2>&1 \\
    | grep -E 'subjectAltName:|issuer:|expire date:|^[{{]"|^curl:'; echo
done
"""

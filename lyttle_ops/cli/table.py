"""The live table of `lyttle-ops local up`; lines instead when nobody sits at a terminal."""

import threading

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lyttle_ops.local.cluster import LocalCluster
from lyttle_ops.local.overview import Overview, Row

INTERVAL = 1.0  # seconds between looks
_COLOURS = {"leader": "bold green", "standby": "cyan", "follower": "", "starting": "yellow"}


def watch(cluster: LocalCluster, stop: threading.Event) -> None:
    """Show the nodes until `stop` is set."""
    overview = Overview(cluster, cluster.status()["database"]["dsn"])
    try:
        if Console().is_terminal:
            _live(cluster, overview, stop)
        else:
            _lines(cluster, overview, stop)
    finally:
        overview.close()


def _live(cluster: LocalCluster, overview: Overview, stop: threading.Event) -> None:
    with Live(_table(overview.rows(cluster.state())), auto_refresh=False) as live:
        while not stop.wait(INTERVAL):
            cluster.reap()
            live.update(_table(overview.rows(cluster.state())), refresh=True)


def _lines(cluster: LocalCluster, overview: Overview, stop: threading.Event) -> None:
    shown: dict[str, str] = {}
    while True:
        cluster.reap()
        for row in overview.rows(cluster.state()):
            line = (
                f"{row.name}: {row.role}, NGINX {_nginx(row)}, release {_release(row)}, certificates {_installed(row)}"
            )
            if shown.get(row.name) != line:
                shown[row.name] = line
                click.echo(line)
        if stop.wait(INTERVAL):
            return


def _table(rows: list[Row]) -> Table:
    table = Table(caption="Ctrl-C stops everything.")
    for heading in ("node", "role", "NGINX", "release", "certificates", "heartbeat"):
        table.add_column(heading)
    for row in rows:
        age = "–" if row.heartbeat_age is None else f"{row.heartbeat_age:.0f} s ago"
        table.add_row(
            row.name,
            Text(row.role, style=_COLOURS.get(row.role, "red")),
            Text(_nginx(row), style="" if row.nginx else "red"),
            _release(row),
            _installed(row),
            age,
        )
    return table


def _nginx(row: Row) -> str:
    return "serving" if row.nginx and row.running else "down"


def _release(row: Row) -> str:
    return row.release[:10] if row.release else "–"


def _installed(row: Row) -> str:
    return "–" if row.installed is None else f"{row.installed}/{row.certificates}"

"""`lyttle-ops settings`: what this process would run with, and where each value comes from."""

import json
import sys

import click
from rich.console import Console
from rich.table import Table

from lyttle_ops.settings import explain


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def settings(as_json: bool) -> None:
    """Show every setting with its value and source; secrets are masked. In a pipe: lines NAME=value  # source.

    A wrong or missing setting is named with what is accepted, and the exit code is 1.
    """
    sources = explain()
    if as_json:
        click.echo(json.dumps({s.variable: {"value": s.shown, "source": s.origin} for s in sources}, indent=2))
        return
    if not sys.stdout.isatty():  # a reader of lines, as grep: nothing is wrapped
        for source in sources:
            click.echo(f"{source.variable}={source.shown}  # {source.origin}")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "value", "source", "meaning"):
        table.add_column(column, overflow="fold")
    for source in sources:
        table.add_row(source.variable, source.shown, source.origin, source.description)
    Console().print(table)

"""`lyttle-ops domains`: what this machine's node serves now, for whoever proves from outside that it does."""

import json
import time
from pathlib import Path
from typing import Any

import click

from lyttle_ops import settings
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.node.status import DOMAINS_FILE, FILE

OLDEST_STATUS = 10.0  # seconds; the node writes its status every 2


@click.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"domains": [{"domain": …, "ssl": …, "ssl_wanted": …}]}.')
def domains(as_json: bool) -> None:
    """Show every domain this machine's node serves; ssl: over HTTPS as well, with a certificate that is there;
    ssl_wanted: it shall be.

    Run it in a node's container. Quarantined and disabled entries are left out. Asks neither PostgreSQL nor NGINX:
    the node keeps a list of what it has applied. With two instances (an update), the newer one's list.
    """
    found = _served(settings.load().run_dir)
    if as_json:
        click.echo(json.dumps({"domains": found}))
        return
    for each in found:
        click.echo(f"{each['domain']}{'  https' if each['ssl'] else ''}")


def _served(run_dir: Path) -> list[dict[str, Any]]:
    """The list of the instance that started last among those that live."""
    alive = []
    for file in run_dir.glob(f"*/{FILE}"):
        try:
            status = json.loads(file.read_text("utf-8"))
            served = json.loads((file.parent / DOMAINS_FILE).read_text("utf-8"))["domains"]
            if time.time() - status["written_at"] <= OLDEST_STATUS:
                alive.append(((file.parent / "lock").stat().st_mtime, served))  # made at its start
        except (OSError, ValueError, KeyError):
            continue  # it is starting, ending, or something else
    if not alive:
        raise LyttleOpsError(
            f"no node that serves was found in {run_dir}: run this where the node runs (docker exec), with its "
            "settings; its log says why it does not serve"
        )
    return list(max(alive, key=lambda each: each[0])[1])

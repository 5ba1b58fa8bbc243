"""`lyttle-ops node`: what a container runs."""

import logging
import os
import sys

import click

from lyttle_ops import logs, settings


@click.command()
def node() -> None:
    """Run this machine's node: control plane, API and NGINX, until SIGTERM.

    Settings come from the environment; `lyttle-ops settings` shows them. Exit code 0 after a clean stop, 1 when
    the node cannot run (the last log line says why).
    """
    loaded = settings.load()
    logs.set_up("node", loaded.log_format, loaded.log_level)
    from lyttle_ops.node.node import Node

    code = Node(loaded).run()
    logging.shutdown()
    sys.stdout.flush()
    # Not by way of the interpreter's end, which would wait for threads that wait for a CA.
    os._exit(code)

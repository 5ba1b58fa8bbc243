"""A start of NGINX for nobody: with UNIX sockets alone, before it gets sockets that others serve from as well.

`nginx -t` says that a configuration can be read. It does not say that workers live and answer; and one that takes a
connection from a shared queue and dies has lost it for everybody.
"""

import os
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lyttle_ops.nginx import probe
from lyttle_ops.nginx.errors import ReleaseFailed
from lyttle_ops.nginx.model import Layout
from lyttle_ops.nginx.process import Process, end


def layout_without_ports(layout: Layout) -> Layout:
    """The same with no address that anybody could ask."""
    return replace(layout, http_listen=(f"unix:{layout.folder}/rehearsal.sock",), https_listen=())


def rehearse(process: Process, folder: Path, configuration: Path, release: str, deadline: float) -> None:
    """Start it, wait until it answers with `release`, end it. Raises ReleaseFailed after `deadline` seconds or its end.

    Nothing else of this instance's NGINX may run meanwhile.
    """
    process.prepare_start()
    until = time.monotonic() + deadline
    with tempfile.TemporaryFile() as errors:
        started = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *process.command(configuration)],
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            while probe.ask_release(folder / "nginx.sock") != release:
                if started.poll() is not None or time.monotonic() > until:
                    errors.seek(0)
                    said = errors.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
                    raise ReleaseFailed(
                        f"release {release} does not answer on its own socket, so it does not get the ports: "
                        + (said[-1] if said else f"NGINX said nothing, exit code {started.poll()}")
                    )
                time.sleep(0.02)
        finally:
            end(started)
            process.prepare_start()

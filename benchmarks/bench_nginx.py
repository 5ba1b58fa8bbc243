"""Time from a change of one site to NGINX serving it, against NGINX's own floor in this run.

    .venv/bin/python benchmarks/bench_nginx.py [--rounds N] [--sites 10,100,1000] [--https]

A real NGINX on a loopback address. One site changes each round. Printed are medians in milliseconds: the pure render,
`apply` with nothing to do, `apply` with one change (render, stage, test, switch, reload, proof), and the floor of that:
a bare `nginx -t`, a HUP, and waiting until workers of the new release are there and those of the old take no more.
The ratio is apply over floor. With --https every site has a certificate, which NGINX loads for each of them.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lyttle_ops.nginx.candidate import throw_away_certificate
from lyttle_ops.nginx.model import CertificateFiles, Site, Target
from lyttle_ops.nginx.process import Process
from lyttle_ops.nginx.releases import NGINX
from lyttle_ops.nginx.render import render
from lyttle_ops.settings import load

HOST = "127.44.8.1"
THUMBPRINT = "x" * 43


def sites(count: int, changed: int, https: bool) -> list[Site]:
    return [
        Site(
            number,
            (f"site{number}.example",),
            "proxy",
            Target("http", "backend.example", 8080 + (changed if number == 1 else 0)),
            tls={f"site{number}.example": "1-1"} if https else {},
            ssl=https,
        )
        for number in range(1, count + 1)
    ]


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def floor(nginx: NGINX, process: Process) -> None:
    """A test and a reload of what is live already."""
    assert process.test(nginx.folder / "live" / "nginx.conf") is None
    master = nginx.pid()
    assert master is not None
    before = process.accepting_workers()
    os.kill(master, signal.SIGHUP)
    while not (now := process.accepting_workers()) or now & before:
        time.sleep(0.002)


def measure(nginx: NGINX, process: Process, count: int, rounds: int, https: bool, files: CertificateFiles) -> None:
    certificates = {"1-1": files} if https else {}
    change = iter(range(1, 10**6))
    nginx.apply(sites(count, next(change), https), certificates, THUMBPRINT)
    times: dict[str, list[float]] = {"render": [], "no change": [], "one change": [], "floor": []}
    for _ in range(rounds):
        wanted = sites(count, next(change), https)
        times["render"].append(timed(lambda wanted=wanted: render(wanted, nginx.layout)))
        times["one change"].append(timed(lambda wanted=wanted: nginx.apply(wanted, certificates, THUMBPRINT)))
        times["no change"].append(timed(lambda wanted=wanted: nginx.apply(wanted, certificates, THUMBPRINT)))
        times["floor"].append(timed(lambda: floor(nginx, process)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["one change"] / medians["floor"]
    print(f"{count:>5} sites  " + "  ".join(f"{name} {value:8.1f} ms" for name, value in medians.items()), end="")
    print(f"  apply/floor {ratio:.2f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="From a change of one site to NGINX serving it.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sites", default="10,100,1000")
    parser.add_argument("--https", action="store_true")
    arguments = parser.parse_args()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # as RUN_DIR is
    base = Path(tempfile.mkdtemp(prefix="lyttle-bench-", dir=memory))
    base.chmod(0o755)
    settings = load(
        {
            "DATABASE_URL": "postgresql://nobody@127.0.0.1/none",
            "MASTER_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
            "HTTP_LISTEN": f"{HOST}:18080",
            "HTTPS_LISTEN": f"{HOST}:18443",
            "NAME_SERVERS": "127.0.0.1",
        }
    )
    nginx = NGINX(settings, base / "1", "benchmark", deadline=60)
    process = Process(base / "1")
    child = None
    try:
        nginx.apply([], {}, THUMBPRINT)
        child = subprocess.Popen(nginx.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while nginx.live_release() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        files = throw_away_certificate(("example.com",))
        for count in map(int, arguments.sites.split(",")):
            measure(nginx, process, count, arguments.rounds, arguments.https, files)
    finally:
        if child is not None:
            child.terminate()
            child.wait()
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())

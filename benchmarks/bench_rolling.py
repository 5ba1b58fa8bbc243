"""What a rolling update costs those who are being served: held ports against published ones, in one run.

    sudo .venv/bin/python benchmarks/bench_rolling.py [--rate N] [--image FILE.tar --name IMAGE] [--nodes N]

Three nodes of a real Swarm on this machine under steady load from outside: fresh connections, keep-alive, HTTP/2, POSTs
and a websocket to each. `docker service update --force` replaces every task, one node after the other:

- held: docker-compose.swarm.yml as it is. The sockets are lent by the service `ports`, the update is start-first.
- published: the usual way, and that of the system this one replaces. 80 and 443 are published in host mode, so Swarm
  has to stop the old task before it can start the new one.

A failed request is what tests/support/load_generator.py says. Failures, retries and p99 of before and during the update
are printed; compare within one run only. Needs root and Docker; without --image the image is built from this checkout.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.load import Figures, Load
from tests.support.quickstack import NODE, QuickStack

DOMAIN = "demo.example.test"
STEADY = 20  # seconds before and after


def published(stack: dict[str, Any]) -> dict[str, Any]:
    """The same node without the holder of its ports."""
    del stack["services"]["ports"]
    node = stack["services"]["lyttlenginx"]
    node["environment"]["LISTEN"] = "bind"
    node["ports"] = [{"target": port, "published": port, "mode": "host"} for port in (80, 443, 3003)]
    node["volumes"] = [volume for volume in node["volumes"] if volume.get("source") != "ports"]
    for part in ("update_config", "rollback_config"):
        node["deploy"][part] = {**node["deploy"][part], "order": "stop-first"}
    return stack


def measure(stack: QuickStack, name: str, rate: float) -> None:
    with Load(stack.addresses, DOMAIN, rate, stack.ca) as load:
        load.phase("before")
        load.wait(int(rate * STEADY), STEADY * 5)
        load.phase("update")
        took = stack.update(NODE, "--force")
        load.phase("after")
        load.wait(int(rate * STEADY), STEADY * 5)
    report = load.report()
    gap = max(figures.longest_gap_s for figures in report.addresses.values())
    print(f"{name}: the update took {took:.0f} s; longest time without an answer from a node {gap:.1f} s")
    for phase in ("before", "update", "after"):
        print(f"  {phase:<7} {line(report.phases[phase])}")
    for kind, figures in report.kinds.items():
        print(f"  {kind:<10} {line(figures)}")
    for error, count in report.errors.items():
        print(f"  {count} × {error}")
    for end in report.websockets:
        print(f"  a websocket on {end.address} lived {end.lived_s:.1f} s: {end.how}")
    print(flush=True)


def line(figures: Figures) -> str:
    counts = f"{figures.failures:>6} of {figures.requests:>6} failed, {figures.retries:>3} retries"
    return f"{counts}, p50 {figures.p50_ms} ms, p99 {figures.p99_ms} ms, worst {figures.max_ms} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description="Requests lost by a rolling update: held ports and published ones.")
    parser.add_argument("--rate", type=float, default=150, help="requests per second, all nodes together")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--image", type=Path, help="a tar file of docker save; default: built from this checkout")
    parser.add_argument("--name", default="", help="name of the image in it")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("not measured: network devices and engines of its own need root")
        return 0
    with tempfile.TemporaryDirectory(prefix="lyttle-roll-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL's user passes through
        with QuickStack(Path(folder) / "s", arguments.image, arguments.name, arguments.nodes) as stack:
            stack.deploy()
            stack.publish(DOMAIN)
            measure(stack, "held ports, start-first", arguments.rate)
            stack.remove()
            stack.deploy(published(stack.stack_file()))
            stack.wait_served(DOMAIN)
            measure(stack, "published ports, stop-first", arguments.rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())

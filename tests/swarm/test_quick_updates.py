"""More than 100,000 requests at this machine's own speed, on a real Swarm of three: updates of every kind, by Swarm's
own commands, cost none of them.

On the lab's hosts, with kernels of their own, test_updates_under_load.py does the same by Ansible, with fewer requests:
they are too slow for many.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import files
from tests.support.labcluster import refuses
from tests.support.load import Load
from tests.support.quickstack import NODE, PORTS, QuickStack, serves
from tests.support.wait import until

pytestmark = pytest.mark.timeout(2400)

DOMAIN = "demo.example.test"
RATE = 220.0  # requests per second, all nodes together
REQUESTS = 100_000
REFUSED = 15.0  # seconds until clients of a node without a task are refused
NEWER = "lyttle-ops:newer"


@pytest.fixture(scope="module")
def stack() -> Iterator[QuickStack]:
    with tempfile.TemporaryDirectory(prefix="lyttle-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL is another user's
        with QuickStack(Path(folder, "s")) as stack:
            for node in stack.swarm.nodes:
                node.docker("tag", stack.image, NEWER)
            stack.deploy()
            stack.publish(DOMAIN)
            yield stack


def tasks(stack: QuickStack, service: str) -> set[str]:
    words = ("service", "ps", "--quiet", "--no-trunc", "--filter", "desired-state=running", service)
    return set(stack.manager.docker(*words).split())


def roll_back(stack: QuickStack) -> None:
    def state() -> str:
        return stack.manager.docker("service", "inspect", "--format", "{{.UpdateStatus.State}}", NODE)

    stack.manager.docker("service", "rollback", "--detach", NODE)
    until(lambda: state() == "rollback_completed", 600, "the old version is back", every=0.5)


def kill_holder(stack: QuickStack) -> None:
    node = stack.swarm.nodes[1]
    running = ("ps", "--quiet", "--filter", f"label=com.docker.swarm.service.name={PORTS}")
    old = node.docker(*running)
    node.docker("kill", "--signal", "KILL", old)
    until(lambda: node.docker(*running) not in ("", old), 120, "another holder", every=0.2)
    stack.settle()


def take_out_and_in(stack: QuickStack, load: Load) -> None:
    """The last node loses its task and its holder, and gets both again; its address is taken out before."""
    node = stack.swarm.nodes[-1]
    load.pause(node.address)  # as a load balancer does
    stack.manager.docker("node", "update", "--label-add", "lyttle.edge=false", node.name)
    until(lambda: not node.docker("ps", "--quiet", "--filter", f"name={NODE}"), 120, "its task has ended", every=0.2)
    until(lambda: refuses(node.address), REFUSED, "clients are refused", every=0.2)
    stack.manager.docker("node", "update", "--label-add", "lyttle.edge=true", node.name)
    until(lambda: serves(node.address, DOMAIN, stack.ca), 120, "it serves again", every=0.2)
    load.resume(node.address)


def test_no_update_of_any_kind_fails_one_of_100_000_requests(stack: QuickStack) -> None:
    before, holders = tasks(stack, NODE), tasks(stack, PORTS)
    with Load(stack.addresses, DOMAIN, RATE, stack.ca) as load:
        load.wait(int(RATE * 5), 60)
        load.phase("update")
        stack.update(NODE, "--image", NEWER)
        load.phase("update of the holder")
        stack.update(PORTS, "--image", NEWER)
        load.phase("holder killed")
        kill_holder(stack)
        load.phase("update after it")
        stack.update(NODE, "--force")
        load.phase("a node out and in")
        take_out_and_in(stack, load)
        load.phase("rollback")
        roll_back(stack)
        load.phase("steady")
        left = REQUESTS - load.report().total.requests
        if left > 0:
            load.wait(left, left / RATE * 3 + 60)
    report = load.report()
    build = files.CHECKOUT / "build"
    build.mkdir(exist_ok=True)
    (build / "load-quick.txt").write_text(f"{report}\n")
    report.check()
    assert report.total.requests >= REQUESTS
    assert report.withheld < report.total.requests / 100, str(report)
    assert not before & tasks(stack, NODE)
    assert not holders & tasks(stack, PORTS)


def test_clients_are_refused_soon_after_the_service_was_removed(stack: QuickStack) -> None:
    stack.manager.docker("service", "rm", NODE)
    for address in stack.addresses:
        until(lambda address=address: refuses(address), REFUSED, f"{address} refuses", every=0.1)

"""Where the tests of a cluster run: on three nodes of a quick Swarm (tests.support.quicklab), at this machine's own
speed, and on three Debian hosts that site.yml makes a cluster of (tests.lab), with kernels, systemd, PostgreSQL and NFS
of their own.

A test that takes `cluster` runs on both, unless it is marked with `on_lab`, which alone has what it needs.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, files
from tests.support.labcluster import DOMAIN, Cluster, provision
from tests.support.quicklab import QuickLab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Hosts on which nothing is installed yet, and the services around them.

    A developer's own lab instead, whatever its state, when LYTTLE_LAB names one: it stays afterwards."""
    own = os.environ.get("LYTTLE_LAB")
    lab = Lab.up(own or "test", fresh=not own)
    yield lab
    if not own:
        lab.down()


@pytest.fixture(scope="session", params=["quick", "lab"])
def provisioned(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster after site.yml, serving a site over HTTPS on every host; logs and reports are in build/swarm."""
    where = request.param
    reports = files.CHECKOUT / "build" / "swarm" / where
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    if where == "lab":
        yield provision(request.getfixturevalue("lab"), reports)
        return
    with tempfile.TemporaryDirectory(prefix="lyttle-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL is another user's
        with QuickLab(Path(folder, "s")) as quick:
            yield provision(quick, reports)


@pytest.fixture
def cluster(provisioned: Cluster) -> Cluster:
    """The cluster, whole: what the test before did to it must have healed."""
    provisioned.whole()
    assert provisioned.serves(provisioned.hosts[0], DOMAIN)
    return provisioned


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what needs no cluster, then the quick one's tests, then the lab's, whose idle hosts cost time.
    What site.yml made of fresh hosts is looked at before other tests change it."""

    def order(item: pytest.Item) -> tuple[int, bool]:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        return ["", "quick", "lab"].index(parameters.get("provisioned", "")), item.path.name != "test_site.py"

    items.sort(key=order)

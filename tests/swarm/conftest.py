"""Three fresh Debian hosts for the whole run (tests.lab), and the cluster that site.yml makes of them."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.lab import Lab, files
from tests.support.labcluster import DOMAIN, Cluster, provision


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Hosts on which nothing is installed yet, and the services around them.

    A developer's own lab instead, whatever its state, when LYTTLE_LAB names one: it stays afterwards."""
    own = os.environ.get("LYTTLE_LAB")
    lab = Lab.up(own or "test", fresh=not own)
    yield lab
    if not own:
        lab.down()


@pytest.fixture(scope="session")
def provisioned(lab: Lab) -> Cluster:
    """The cluster after site.yml, serving a site over HTTPS on every host; logs and reports are in build/swarm."""
    folder = files.CHECKOUT / "build" / "swarm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return provision(lab, folder)


@pytest.fixture
def cluster(provisioned: Cluster) -> Cluster:
    """The cluster, whole: what the test before did to it must have healed."""
    provisioned.whole()
    assert provisioned.serves(provisioned.lab.hosts[0], DOMAIN)
    return provisioned


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs no host of the lab comes before there are any, since they cost this machine's time. What site.yml made
    of fresh ones is looked at before other tests change it."""
    items.sort(key=lambda item: ("lab" in getattr(item, "fixturenames", ()), item.path.name != "test_site.py"))

"""Three fresh Debian hosts for the whole run (tests.lab), removed at its end."""

from collections.abc import Iterator

import pytest

from tests.lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Hosts on which nothing is installed yet, and the services around them."""
    lab = Lab.up("test", fresh=True)
    yield lab
    lab.down()

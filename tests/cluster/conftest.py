"""A real cluster on this machine: real PostgreSQL, real CA, three nodes with real NGINX and API."""

from collections.abc import Iterator

import pytest

from tests.support.local import LocalCommand, local_command


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCommand]:
    """Three nodes that are ready, on addresses of their own; stopped and removed after the module's tests."""
    with local_command() as command:
        command.do("up", "--detach")
        yield command

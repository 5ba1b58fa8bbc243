"""A real cluster on this machine: real PostgreSQL, real CA, three nodes with real NGINX and API."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.local import LocalCommand, local_command


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCommand]:
    """Three nodes that are ready, on addresses of their own; stopped and removed after the module's tests."""
    with local_command() as command:
        command.do("up", "--detach")
        yield command


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failed test shows the ends of its cluster's logs, which are gone afterwards."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, LocalCommand):
                for log in sorted(value.state_folder.glob("logs/*.log")):
                    lines = log.read_text(errors="replace").splitlines()[-40:]
                    report.sections.append((f"end of {log.name}", "\n".join(lines)))
    return report

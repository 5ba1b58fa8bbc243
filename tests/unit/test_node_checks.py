"""What a node says of PostgreSQL."""

from lyttle_ops.clock import SystemClock
from lyttle_ops.node.checks import DatabaseHealth


def test_a_reason_of_several_lines_is_one_line() -> None:
    health = DatabaseHealth(SystemClock())
    health.failed(OSError('connection to "db" failed: Connection refused\n\tIs the server running on that host?\n'))
    expected = 'connection to "db" failed: Connection refused Is the server running on that host?'
    assert health.error == expected
    assert health.look(listening=False) == {"ok": False, "message": expected}

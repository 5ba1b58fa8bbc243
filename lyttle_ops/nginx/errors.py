"""What can go wrong in the nginx room."""

from lyttle_ops.errors import LyttleOpsError


class NGINXMissing(LyttleOpsError):
    """NGINX is not installed: run `make setup`, or `apt-get install nginx`."""


class UnsafeValue(LyttleOpsError):
    """A value cannot stand in an NGINX configuration."""


class ReleaseFailed(LyttleOpsError):
    """A release did not come up; the last good one serves."""


class CustomCodeError(LyttleOpsError):
    """The custom code is not acceptable; `line` counts from 1 in the text as it was given."""

    def __init__(self, message: str | None = None, line: int = 1) -> None:
        super().__init__(message)
        self.line = line

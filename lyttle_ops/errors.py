"""The root of every error LyttleOps raises on purpose; the docstring of a class is its default message."""


class LyttleOpsError(Exception):
    """Something went wrong in LyttleOps."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or type(self).__name__).strip())


class ConfigurationError(LyttleOpsError):
    """A setting is missing or wrong."""

"""HTTPS on every node of a Docker Swarm, coordinated through PostgreSQL alone."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lyttle-ops")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

"""The programs a local cluster needs from the machine."""

import os
import shutil

from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.local import postgres

# A user's PATH on Debian has no sbin, where nginx lies.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class PackagesMissing(LyttleOpsError):
    """Programs that the local cluster needs are not installed."""


def require() -> None:
    """Raises PackagesMissing naming every package that is not there and the way to get them."""
    missing = [package for package in ("nginx", "pebble") if shutil.which(package, path=SEARCH_PATH) is None]
    try:
        postgres.find_programs()
    except postgres.PostgresMissing:
        missing.append("postgresql")
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise PackagesMissing(
            f"{' and '.join(missing)} {verb} not installed: run `make setup`, or as root `apt-get install "
            f"{' '.join(missing)}`"
        )

"""Where a lab keeps what it has, and the locks that keep two commands apart."""

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
LABS = CHECKOUT / "build" / "lab"
CACHE = LABS / "cache"
GUEST = Path(__file__).resolve().parent / "guest"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")


def check_name(name: str) -> str:
    """`name`, when a folder may be called so. Raises ValueError."""
    if not _NAME.fullmatch(name) or name == "cache":
        raise ValueError(f"{name!r} cannot name a lab: a letter, then letters, digits and hyphens, at most 20")
    return name


def identity(name: str, checkout: Path = CHECKOUT) -> str:
    """Six hex digits for the lab `name` of this checkout: part of the names of its devices and rules."""
    return hashlib.sha256(f"{checkout}/{name}".encode()).hexdigest()[:6]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file `path` against other commands; the kernel lets go of it when this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

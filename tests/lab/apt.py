"""Where this machine's apt finds Debian, so that the lab asks the same mirrors in the same way."""

import os
from dataclasses import dataclass

from tests.lab import shell


@dataclass(frozen=True, slots=True)
class Apt:
    """Where this machine's apt finds Debian, and how: the guests do the same."""

    debian: str
    security: str
    settings: str

    def sources(self, suite: str) -> str:
        """sources.list of a guest."""
        lines = (
            f"deb {self.debian} {suite} main\n"
            f"deb {self.debian} {suite}-updates main\n"
            f"deb {self.security} {suite}-security main\n"
        )
        return lines if suite not in ("sid", "unstable") else f"deb {self.debian} {suite} main\n"


def machine_apt() -> Apt:
    """What /etc/apt of this machine says; Debian's own mirrors when it is no Debian."""
    debian, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
    targets = shell.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]
    )
    for line in targets.splitlines():
        origin, label, uri = line.split("|", 2)
        if origin == "Debian" and label == "Debian":
            debian = uri.rstrip("/")
        elif origin == "Debian" and label == "Debian-Security":
            security = uri.rstrip("/")
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Languages", "Acquire::Retries")
    settings = [line for line in shell.run(["apt-config", "dump"]).splitlines() if line.startswith(wanted)]
    for scheme in ("http", "https"):
        if proxy := os.environ.get(f"{scheme}_proxy"):
            settings.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    return Apt(debian, security, "".join(f"{line}\n" for line in settings))

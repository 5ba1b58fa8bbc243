"""What this instance says about itself on this machine: status.json, metrics.prom and domains.json in its run folder.

The API and the health check read them instead of asking PostgreSQL, so they cost no statement and work while it
is away. Readers refuse a file older than 10 seconds: the node writes it every 2.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, generate_latest

FILE = "status.json"
METRICS_FILE = "metrics.prom"
DOMAINS_FILE = "domains.json"


class StatusFile:
    """Writes these files, each in one step. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mutex = threading.Lock()

    def write(self, status: dict[str, Any]) -> None:
        """`status` as lyttle_ops.node.node builds it; the time is added here."""
        with self._mutex:
            self._replace(FILE, json.dumps({**status, "written_at": time.time()}, default=str).encode())
            self._replace(METRICS_FILE, generate_latest(REGISTRY))

    def write_domains(self, domains: list[dict[str, object]]) -> None:
        """What is served now: {"domain", "ssl", "ssl_wanted"} each; written when it changes, there may be thousands."""
        with self._mutex:
            self._replace(DOMAINS_FILE, json.dumps({"domains": domains}).encode())

    def _replace(self, name: str, content: bytes) -> None:
        temporary = self._folder / f".{name}.new"
        temporary.write_bytes(content)
        os.replace(temporary, self._folder / name)

"""Has NGINX test an entry before it is saved; the room of entries and the room of NGINX meet here."""

import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

from lyttle_ops.nginx.candidate import validate_site
from lyttle_ops.proxies import Proxy, ProxyInput, to_site
from webapi.services import services

# A test starts a process; a few at once are enough, the others wait.
_tests = threading.BoundedSemaphore(2)


def nginx_message(entry: ProxyInput) -> str | None:
    """None when NGINX takes the entry, else what it says. Raises NGINXMissing."""
    now = datetime.now(UTC)
    values = {**entry.model_dump(), "domains": entry.domains}
    proxy = Proxy(id=0, revision=0, created_at=now, updated_at=now, **values)
    scratch = services().instance_dir or Path(tempfile.gettempdir())
    with _tests:
        return validate_site(to_site(proxy, {}), scratch)

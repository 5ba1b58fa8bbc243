"""The issuing worker: finds certificates that are due and works on up to eight of them at once.

First issues are anybody's, under the cluster's lock for that name; renewals are the leader's. A node that finds
another one at work looks again soon, so that an order whose node died is resumed.
"""

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from lyttle_ops.certificates.model import Due, Outcome
from lyttle_ops.certificates.service import Certificates
from lyttle_ops.db import DatabaseError
from lyttle_ops.errors import LyttleOpsError

log = logging.getLogger(__name__)

AT_ONCE = 8
_LOOK_AGAIN = (1.0, 2.0, 5.0, 10.0)  # seconds while something is due or in somebody's hands


class Issuing:
    """Runs on a thread of its own between `start` and `stop`; `request` asks for a look."""

    def __init__(self, certificates: Certificates, may_renew: Callable[[], bool]) -> None:
        self._certificates = certificates
        self._may_renew = may_renew
        self._requested = threading.Event()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="issuing")
        self._mutex = threading.Lock()
        self._working: set[tuple[str, ...]] = set()
        self._thread = threading.Thread(target=self._run, name="issuing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No new orders; those under way get as far as they get, and whoever comes next resumes them."""
        self._stopping.set()
        self._requested.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def request(self) -> None:
        self._requested.set()

    def _run(self) -> None:
        looks = 0
        busy = True
        while not self._stopping.is_set():
            pause = _LOOK_AGAIN[min(looks, len(_LOOK_AGAIN) - 1)] * random.uniform(0.8, 1.2)  # noqa: S311 - spreads nodes
            if self._requested.wait(pause if busy else None):
                looks = 0
            self._requested.clear()
            if self._stopping.is_set():
                return
            try:
                due = self._certificates.pending(self._may_renew())
            except DatabaseError as exc:
                log.warning("Issuing waits for PostgreSQL: %s", exc)
                busy, looks = True, looks + 1
                continue
            except Exception:
                log.exception("Issuing: the look for due certificates failed")
                busy, looks = True, looks + 1
                continue
            random.shuffle(due)  # nodes begin at different ends
            for each in due:
                self._submit(each)
            busy, looks = bool(due), looks + 1

    def _submit(self, due: Due) -> None:
        with self._mutex:
            if due.domains in self._working or self._stopping.is_set():
                return
            self._working.add(due.domains)
        self._pool.submit(self._work, due).add_done_callback(lambda future: self._done(due, future))

    def _work(self, due: Due) -> Outcome | None:
        # Asked again: a leader may have been deposed while its renewals queued here.
        if due.renewal and not self._may_renew():
            return None
        return self._certificates.ensure_certificate(due.domains)

    def _done(self, due: Due, future: "Future[Outcome | None]") -> None:
        with self._mutex:
            self._working.discard(due.domains)
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, DatabaseError):
            log.warning("Certificate for %s waits for PostgreSQL: %s", ", ".join(due.domains), error)
        elif isinstance(error, LyttleOpsError):
            log.error("Certificate for %s: %s", ", ".join(due.domains), error)
        elif error is not None:
            log.error("Certificate for %s: an error nobody foresaw", ", ".join(due.domains), exc_info=error)

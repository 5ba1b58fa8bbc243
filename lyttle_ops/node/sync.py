"""The sync worker: brings what NGINX serves to what PostgreSQL says, one run at a time.

Requests that come while a run is under way are answered by one more run after it.
"""

import logging
import threading
from collections.abc import Callable
from uuid import UUID

from prometheus_client import Counter, Gauge, Histogram

from lyttle_ops.certificates.service import Certificates
from lyttle_ops.cluster.members import Member
from lyttle_ops.db import Database, DatabaseError, load_queries
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.nginx.releases import NGINX
from lyttle_ops.node.desired import Desired, SnapshotFile, SnapshotUnusable, certificate_name
from lyttle_ops.node.shared import SharedCopy
from lyttle_ops.proxies.store import list_proxies

log = logging.getLogger(__name__)
queries = load_queries("lyttle_ops.node")

_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before a failed run is tried again
_HANDSHAKE_TRIES = 20
_HANDSHAKE_PAUSE = 0.05  # seconds; a worker of the previous release may still answer right after a reload

_runs = Histogram("lyttle_sync_seconds", "One run of the sync worker: read, apply, prove, report")
_failures = Counter("lyttle_sync_failures_total", "Runs of the sync worker that failed")
_not_after = Gauge("lyttle_certificate_not_after_seconds", "Unix time a served certificate expires", ["domains"])
_quarantined = Gauge("lyttle_proxies_quarantined", "Proxies this node cannot serve as configured")
_revision = Gauge("lyttle_applied_revision", "Revision of the cluster's state this node serves")


class DatabaseEmptied(DatabaseError):
    """PostgreSQL has no entry, and is no later state of what this node serves: another or a new database."""


class Sync:
    """Runs on a thread of its own between `start` and `stop`; `request` asks for a run."""

    def __init__(
        self,
        database: Database,
        certificates: Certificates,
        member: Member,
        nginx: NGINX,
        snapshot: SnapshotFile,
        shared: SharedCopy,
        instance_id: UUID,
        before_apply: Callable[[], None],
        on_applied: Callable[[], None],
    ) -> None:
        self._database = database
        self._certificates = certificates
        self._member = member
        self._nginx = nginx
        self._snapshot = snapshot
        self._shared = shared
        self._instance_id = instance_id
        self._before_apply = before_apply
        self._on_applied = on_applied
        self._requested = threading.Event()
        self._stopping = threading.Event()
        self._running = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._reported: set[int] = set()  # orders whose certificate this NGINX was seen to serve
        self._last_report: tuple[int, str | None, dict[int, str]] | None = None
        self.revision = 0
        self.release: str | None = None
        self.quarantined: dict[int, str] = {}
        self.domains: list[dict[str, object]] = []  # what is served: {"domain", "ssl", "ssl_wanted"}, by name
        self.error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._requested.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def request(self) -> None:
        self._requested.set()

    def report_again(self) -> None:
        """PostgreSQL does not know this instance any more (pruned, or restored from a back-up): tell it all anew."""
        self._last_report = None
        self._reported.clear()
        self._requested.set()

    def apply(self, desired: Desired) -> None:
        """Serve `desired`. Raises ReleaseFailed when not even the rest of it can be served."""
        with self._running:
            sites, unusable = desired.sites()
            self._before_apply()
            applied = self._nginx.apply(sites, desired.files(), desired.thumbprint)
            quarantined = {**applied.quarantined, **unusable}
            for site, message in quarantined.items():
                if self.quarantined.get(site) != message:
                    log.warning("Proxy %d is quarantined, all others are served: %s", site, message)
            for site in self.quarantined.keys() - quarantined.keys():
                log.info("Proxy %d is not quarantined any more", site)
            self.release, self.quarantined = applied.release, quarantined
            self.revision = desired.revision
            self.domains = [
                {"domain": domain, "ssl": domain in site.tls, "ssl_wanted": site.ssl}
                for site in sites
                if site.id not in quarantined
                for domain in site.domains
            ]
            self.domains.sort(key=lambda each: str(each["domain"]))
            self.error = None
            _revision.set(desired.revision)
            _quarantined.set(len(quarantined))
            _not_after.clear()
            for certificate in desired.certificates:
                _not_after.labels(";".join(certificate.domains)).set(certificate.not_after.timestamp())
        self._on_applied()

    def run_once(self) -> None:
        """Read, apply, prove, report. Raises what went wrong."""
        desired = self._read()
        self._refuse_emptied(desired)
        self.apply(desired)
        if not self._nginx.is_running():
            return  # boot: NGINX starts now and the run that follows its start proves and reports
        self._prove(desired)
        self._report()
        self._shared.publish(desired)
        try:
            self._snapshot.save(desired)
        except OSError as exc:
            # It serves; only a start with PostgreSQL away would find an older state.
            log.error("The last known state could not be written to STATE_DIR: %s", exc)

    def _read(self) -> Desired:
        # The revision first: what is read after it can only be newer, and newer is seen by the next run.
        with self._database.connection() as connection:
            row = connection.execute(queries.revision).fetchone()
            assert row is not None  # the migration put it there
            proxies = list_proxies(connection, enabled_only=True)
        self._certificates.check_key(row["key_id"])
        thumbprint, certificates = self._certificates.account_thumbprint(), self._certificates.usable()
        return Desired(row["revision"], thumbprint, proxies, certificates, row["key_id"])

    def _refuse_emptied(self, desired: Desired) -> None:
        """A new or wrong database must not end every site. Raises DatabaseEmptied.

        Whoever removes the entries one by one, or restores a backup as these playbooks do, raises the revision."""
        if desired.proxies:
            return
        known = self.revision if self.domains else self._saved_revision()
        if known > desired.revision:
            raise DatabaseEmptied(
                f"it has no entry and revision {desired.revision}, while this node knows entries of revision {known}: "
                "it is a new or another database. The node goes on serving what it knows until a backup is restored "
                f"there or a first entry is made; if it is meant, remove {self._snapshot} and restart the node"
            )

    def _saved_revision(self) -> int:
        """Of the snapshot, when it has entries; else 0."""
        try:
            known = self._snapshot.load()
        except SnapshotUnusable:
            return 0
        return known.revision if known and known.proxies else 0

    def _prove(self, desired: Desired) -> None:
        """Report each certificate that a real handshake with this NGINX shows, once."""
        domains = desired.served_domains(self.quarantined)
        waiting = {
            certificate_name(c): c
            for c in desired.certificates
            if certificate_name(c) in domains and c.order_id not in self._reported
        }
        for _ in range(_HANDSHAKE_TRIES):
            if not waiting:
                return
            serials = self._nginx.served_serials({name: domains[name] for name in waiting})
            seen = [c for name, c in waiting.items() if serials.get(name) == c.serial]
            if seen:
                self._certificates.report_installed(self._instance_id, [(c.order_id, c.serial) for c in seen])
                self._reported.update(c.order_id for c in seen)
                waiting = {name: c for name, c in waiting.items() if c not in seen}
            if waiting and self._stopping.wait(_HANDSHAKE_PAUSE):
                return
        for name, certificate in waiting.items():
            log.warning(
                "Certificate %s (%s) is applied, but a handshake shows serial %s instead of %s",
                name, ", ".join(certificate.domains), serials.get(name), certificate.serial,
            )  # fmt: skip

    def _report(self) -> None:
        reported = (self.revision, self.release, self.quarantined)
        if reported != self._last_report:
            self._member.report_applied(self.revision, self.release or "", self.quarantined)
            self._last_report = reported

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._requested.wait(None if not failures else _PAUSES[min(failures, len(_PAUSES)) - 1])
            if self._stopping.is_set():
                return
            self._requested.clear()
            try:
                with _failures.count_exceptions(), _runs.time():
                    self.run_once()
                failures = 0
            except DatabaseError as exc:
                failures += 1
                if isinstance(exc, DatabaseEmptied):
                    self.error = str(exc)
                log.warning("Sync waits for PostgreSQL: %s", exc)
            except LyttleOpsError as exc:
                failures += 1
                self.error = str(exc)
                log.error("Sync failed, the last good release stays: %s", exc)
            except Exception as exc:
                failures += 1
                self.error = repr(exc)
                log.exception("Sync failed, the last good release stays")

"""The composition root of a container: puts the rooms together and decides what happens when one fails.

Start: settings and folders → restart guard → PostgreSQL (verified, migrated, registered) → desired state → NGINX
and the API. With PostgreSQL away, the last snapshot is served and the rest follows when it is back. An instance
that was never ready ends with a reason and a non-zero code, so that Swarm rolls back; one that was ready goes into
failure mode instead: NGINX keeps serving, health and log say why, and it waits for a person.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

from lyttle_ops import __version__, accounts
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.service import Certificates
from lyttle_ops.clock import SystemClock
from lyttle_ops.cluster import leadership as leading
from lyttle_ops.cluster import members
from lyttle_ops.cluster.events import STATE_CHANNEL, Events
from lyttle_ops.cluster.leadership import Leadership, NotLeader
from lyttle_ops.cluster.locks import Locks
from lyttle_ops.cluster.members import Member, NodeNameTaken
from lyttle_ops.db import Database, DatabaseError, DatabaseMisconfigured
from lyttle_ops.db.migrate import migrate
from lyttle_ops.errors import LyttleOpsError
from lyttle_ops.nginx.releases import NGINX
from lyttle_ops.node import checks, preflight
from lyttle_ops.node.desired import SnapshotFile
from lyttle_ops.node.folder import InstanceFolder
from lyttle_ops.node.issuing import Issuing
from lyttle_ops.node.listeners import Listeners
from lyttle_ops.node.mark import DatabaseMark
from lyttle_ops.node.programs import api_child, nginx_child
from lyttle_ops.node.restart import RestartGuard
from lyttle_ops.node.schedule import Schedule
from lyttle_ops.node.shared import SharedCopy, last_known
from lyttle_ops.node.status import StatusFile
from lyttle_ops.node.supervisor import Supervisor
from lyttle_ops.node.sync import Sync
from lyttle_ops.settings import Settings

log = logging.getLogger(__name__)

PROBE_INTERVAL = 2.0  # seconds between looks at NGINX and the API
API_LOOKS = 6  # looks at an API that runs and does not answer, after which it is started anew
API_START = 60.0  # seconds it has from its start to its first answer
GRACE = 25.0  # seconds in-flight requests get at SIGTERM; stop_grace_period is longer
EXHAUSTED_PAUSE = 15.0  # seconds, for each unclean end, that a node which gives up waits before it does
EXHAUSTED_LONGEST = 120.0  # seconds it waits at most
DATABASE_PATIENCE = 120.0  # seconds a node with nothing to serve waits for PostgreSQL
_DATABASE_PAUSES = (0.5, 1.0, 2.0, 5.0)


class Fatal(LyttleOpsError):
    """This node cannot run as configured."""


class Node:
    """One instance. `run` returns the process's exit code."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._instance_id: UUID = uuid4()
        short = str(self._instance_id)[:8]
        self._state = "starting"
        self._failure: str | None = None
        self._given_up: set[str] = set()  # children that will not be started again
        self._warned: list[str] = preflight.check_folders(settings.state_dir, settings.run_dir)
        self._folder = InstanceFolder(settings.run_dir, short)
        self._guard = RestartGuard(settings.state_dir, self._instance_id, self._clock)
        name = f"lyttle/{short}"
        urls = [url.get_secret_value() for url in (settings.database_url, settings.database_migration_url) if url]
        self._database = Database(urls[0], name, size=4)
        self._locks = Locks(self._database)
        self._keyring = Keyring(*settings.master_keys())
        self._mark = DatabaseMark(settings.state_dir, self._keyring, urls)
        self._certificates = Certificates(
            self._database, self._keyring, self._locks, settings, settings.node_name, self._instance_id, self._clock
        )
        self._member = Member(
            self._database, self._instance_id, settings.node_name, settings.node_machine_id, self._keyring.key_ids
        )
        self._listeners = Listeners(settings, self._instance_id)
        self._nginx = NGINX(settings, self._folder.path, str(self._instance_id), held=self._listeners.for_nginx)
        self._snapshot = SnapshotFile(settings.state_dir, self._keyring)
        self._shared = SharedCopy(
            settings.shared_dir, self._keyring, lambda: self._leadership.settled_term, self._clock
        )
        self._leadership = Leadership(
            self._database,
            self._instance_id,
            settings.node_name,
            self._clock,
            eligible=lambda: self._serving,
            on_elected=lambda term: self._schedule.begin_term(self._leadership.settled),
            on_lost=lambda: self._schedule.end_term(),
        )
        self._issuing = Issuing(self._certificates, lambda: self._leadership.settled)
        self._sync = Sync(
            self._database,
            self._certificates,
            self._member,
            self._nginx,
            self._snapshot,
            self._shared,
            self._instance_id,
            before_apply=self._listeners.take,
            on_applied=self._something_to_serve,
        )
        self._events = Events(
            self._database,
            {STATE_CHANNEL: self._state_changed, leading.CHANNEL: self._invited},
        )
        self._schedule = Schedule(self._clock, self._heartbeat, self._renew, self._prune)
        self._supervisor = Supervisor(self._clock)
        self._status = StatusFile(self._folder.path)
        self._stopping = threading.Event()
        self._ended = threading.Event()  # the programs have, after `_stopping`
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._wake = threading.Event()
        self._serving = False  # NGINX answered with the applied release at the last look
        # Held ports are another network's, and another task may answer there.
        self._addresses = () if self._listeners.are_held else (*settings.http_listen, *settings.https_listen)
        self._checks: dict[str, dict[str, Any]] = {}
        self._api_silent = 0  # looks in a row that the API has not answered
        self._database_health = checks.DatabaseHealth(self._clock)
        self._exit_code = 0
        self._signalled = False
        self._misconfigured = False  # DATABASE_URL or this version seems unfit (lyttle_ops.node.mark)
        self._once_ready = False  # this instance was, or one before it on this machine that died

    # -- life ------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until SIGTERM or SIGINT (0), or until it is certain that it cannot (1)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)
        for warning in self._warned:
            log.warning("%s", warning)
        log.info("Node %s, instance %s, version %s", self._settings.node_name, self._instance_id, __version__)
        try:
            self._guard.begin()
        except OSError as exc:
            log.error("Restarts cannot be counted, STATE_DIR %s: %s", self._settings.state_dir, exc)
        if self._guard.exhausted and not self._guard.once_ready:
            pause = min(EXHAUSTED_PAUSE * self._guard.count, EXHAUSTED_LONGEST)
            log.critical(
                "This node ended uncleanly %d times within 5 minutes and was never ready: giving up in %.0f s. "
                "See the reasons above in this log; %s/restart.count counts them",
                self._guard.count, pause, self._settings.state_dir,
            )  # fmt: skip
            self._guard.end()  # a refusal is no restart
            # Swarm starts the next one 10 s after this one's end, for ever.
            deadline = self._clock.monotonic() + pause
            while not self._signalled and self._clock.monotonic() < deadline:
                self._wake.wait(0.2)
            return 1
        if not self._listeners.are_held:
            self._start_api()  # else with NGINX: what cannot serve takes no connection from one that can
        self._shared.start()
        threading.Thread(target=self._boot, name="boot", daemon=True).start()
        self._watcher.start()
        while not self._stopping.is_set():
            self._supervisor.tick()
            self._check_children()
            self._renew_silent_api()
            self._wake.wait(0.2)
            self._wake.clear()
            if self._signalled:
                self._stop()
        self._shut_down()
        return self._exit_code

    def _note_signal(self, number: int, frame: object) -> None:
        # A flag and nothing more: an Event set here could wait for the very lock that this thread holds.
        self._signalled = True

    def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def _boot(self) -> None:
        try:
            if self._guard.exhausted:
                self._once_ready = True
                self._serve_snapshot()
                self._fail(
                    f"it ended uncleanly {self._guard.count} times within 5 minutes; it serves what it served last. "
                    f"Find out why in the log, remove {self._settings.state_dir}/restart.count and restart this node",
                    was_ready=True,
                )
                return
            self._join()
        except LyttleOpsError as exc:
            self._fail(str(exc))
        except Exception as exc:
            log.exception("Start failed")
            self._fail(f"an error nobody foresaw: {exc!r}")

    def _join(self) -> None:
        """Verify and migrate the database, register, fetch what to serve; then start the jobs."""
        deadline = self._clock.monotonic() + DATABASE_PATIENCE
        served = False
        tries = 0
        while not self._stopping.is_set():
            try:
                self._prepare_database()
                # It applies and makes NGINX start; the sync thread proves it then.
                self._sync.run_once()
                self._database_health.answered()
                self._remember_database()
                break
            except DatabaseError as exc:
                blamed, self._misconfigured = self._misconfigured, self._misconfigured or self._mark.blames(exc)
                self._database_health.failed(exc)
                log.warning("PostgreSQL at %s cannot be used: %s", self._database.address, exc)
                if self._misconfigured and not blamed:  # until it works: a blip in between proves nothing
                    new = "DATABASE_URL or its CA was changed" if self._mark.changed else "This version is new"
                    log.warning("%s here: this node is not ready before it works", new)
                served = served or self._serve_snapshot()
                if not served and self._misconfigured and isinstance(exc, DatabaseMisconfigured):
                    raise
                if not served and self._clock.monotonic() > deadline:
                    raise Fatal(
                        f"PostgreSQL could not be used for {DATABASE_PATIENCE:.0f} s, there is nothing to serve: {exc}"
                    ) from exc
            pause = _DATABASE_PAUSES[min(tries, len(_DATABASE_PAUSES) - 1)]
            tries += 1
            self._stopping.wait(pause)
        if self._stopping.is_set():
            return
        self._misconfigured = False
        self._sync.start()
        self._schedule.start()
        self._events.start()
        self._issuing.start()
        self._leadership.start()

    def _prepare_database(self) -> None:
        preflight.check_database(self._database)
        owner = self._settings.database_migration_url
        if owner is None:
            migrate(self._database)
        else:
            migrating = Database(owner.get_secret_value(), f"{self._database.name}/migrate", size=0)
            migrate(migrating)
        preflight.agree_on_key(self._database, self._keyring)
        self._member.heartbeat()
        self._member.bury(self._guard.dead)
        settings = self._settings
        accounts.ensure_first_admin(
            self._database,
            settings.admin_username,
            settings.admin_password.get_secret_value() if settings.admin_password else None,
            settings.state_dir / "admin-password",
        )

    def _remember_database(self) -> None:
        try:
            self._mark.worked()
        except OSError as exc:
            log.error("That DATABASE_URL works could not be written to STATE_DIR: %s", exc)

    def _serve_snapshot(self) -> bool:
        served = False
        for desired, place in last_known(self._snapshot, self._shared):
            self._sync.apply(desired)
            log.warning("Serving the last known state, revision %d from %s", desired.revision, place)
            served = True
        return served

    def _shut_down(self) -> None:
        self._state = "stopping"
        log.info("Stopping: ports and leadership first, then requests in flight")
        self._listeners.release()
        self._leadership.stop(timeout=3.0)
        self._write_status()
        # Beside each other: a PostgreSQL that never answers must not eat the time that requests in flight have.
        leaving = threading.Thread(target=self._leave, name="leave", daemon=True)
        leaving.start()
        self._supervisor.stop(GRACE)
        self._ended.set()
        leaving.join(timeout=2.0)
        self._watcher.join(timeout=5.0)  # or it would write into the folder that goes
        if self._exit_code == 0:
            self._guard.end()
        self._folder.remove()
        log.info("Stopped with code %d", self._exit_code)

    def _leave(self) -> None:
        self._issuing.stop()
        self._certificates.stop()
        self._schedule.stop()
        self._sync.stop()
        self._shared.stop()
        if self._events.connected:
            try:
                self._member.leave()
            except DatabaseError as exc:
                log.warning("Could not tell PostgreSQL that this node leaves: %s", exc)
        self._events.stop()
        self._locks.close()
        self._database.close()

    def _fail(self, reason: str, was_ready: bool = False) -> None:
        """Failure mode when this instance (or, with `was_ready`, one before it) was ready or serves; else the end."""
        if self._state == "stopping" or self._stopping.is_set():
            return
        self._failure = reason
        if was_ready or self._state == "ready" or self._serving:
            log.critical("FAILURE MODE: %s", reason)
            self._state = "failed"
            self._start_api()
            self._leadership.reconsider()
            return
        log.critical("This node cannot start: %s", reason)
        self._exit_code = 1
        self._stop()

    # -- children --------------------------------------------------------------------------------------

    def _start_api(self) -> None:
        # While this node has held ports, clients of an API that is not there wait in a queue that nobody empties.
        api = api_child(
            str(self._instance_id),
            self._folder.path,
            self._listeners.for_api,
            may_be_given_up=lambda: not (self._once_ready and self._listeners.for_api()),
        )
        self._supervisor.add(api)

    def _renew_silent_api(self) -> None:
        api = self._supervisor.child("api")
        if api is None or not api.running or api.end_by is not None or self._api_silent < API_LOOKS:
            return
        if self._clock.monotonic() - api.started_at > API_START:
            log.error("The API runs and does not answer; it is started anew: %s", self._checks["api"]["message"])
            self._supervisor.renew("api")

    def _something_to_serve(self) -> None:
        """A release is there: NGINX can start, if it is the first."""
        self._status.write_domains(self._sync.domains)
        if not self._stopping.is_set():
            self._supervisor.add(nginx_child(self._nginx, self._listeners.for_nginx))
            self._start_api()
            self._wake.set()

    def _check_children(self) -> None:
        for name in ("nginx", "api"):
            child = self._supervisor.child(name)
            if child is not None and child.given_up and name not in self._given_up:
                self._given_up.add(name)
                if self._failure is None:
                    self._fail(child.given_up)
                if name == "nginx" and self._listeners.are_held:
                    # Nobody empties the queues any more: let clients be refused, and other tasks have the ports.
                    self._listeners.release()
                    self._nginx.prepare_start()  # workers whose master was killed have them too
                    self._supervisor.renew("api")

    # -- what others tell us ---------------------------------------------------------------------------

    def _state_changed(self, payload: str) -> None:
        self._sync.request()
        self._issuing.request()
        if not payload:  # a new connection: PostgreSQL is back, and need not wait for the next heartbeat
            self._schedule.heartbeat_now()

    def _invited(self, payload: str) -> None:
        if payload == str(self._instance_id):
            self._leadership.stand()

    def _heartbeat(self) -> None:
        try:
            answer = self._member.heartbeat()
        except NodeNameTaken as exc:
            self._fail(str(exc))
            return
        except DatabaseError as exc:
            self._database_health.failed(exc)
            return
        self._database_health.answered()
        if answer.registered:
            self._sync.report_again()
        if answer.revision != self._sync.revision:
            self._sync.request()
        if answer.certificates_due:
            self._issuing.request()
        if not (answer.has_leader and answer.has_standby):
            self._leadership.stand()

    # -- leader only -----------------------------------------------------------------------------------

    def _renew(self) -> None:
        if not self._leadership.settled:
            return
        self._guarded("Renewal check", lambda: self._certificates.check_renewals(self._leadership.transaction))
        self._issuing.request()

    def _prune(self) -> None:
        def prune() -> None:
            with self._leadership.transaction() as connection:
                members.prune(connection)
                accounts.prune(connection)
                self._certificates.prune(connection)

        self._guarded("Pruning", prune)

    def _guarded(self, what: str, job: Callable[[], object]) -> None:
        try:
            job()
        except NotLeader:
            log.info("%s stopped: this node does not lead any more", what)
        except LyttleOpsError as exc:
            log.warning("%s failed, the next one tries again: %s", what, exc)

    # -- what this instance says about itself ----------------------------------------------------------

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                if not self._stopping.is_set():
                    self._look()
                self._write_status()  # while it stops as well: requests in flight may take longer than it may be old
                if not self._stopping.is_set():
                    self._schedule.mend()
            except Exception:
                log.exception("Status could not be written")
            self._ended.wait(PROBE_INTERVAL if self._state != "starting" else 0.1)

    def _look(self) -> None:
        self._checks = {
            "nginx": checks.look_at_nginx(self._nginx, self._addresses),
            "release": checks.look_at_release(self._nginx, self._sync.release, self._sync.error),
            "database": self._database_health.look(self._events.connected),
            "api": checks.look_at_api(self._folder.path / "api.sock"),
        }
        self._api_silent = 0 if self._checks["api"]["ok"] else self._api_silent + 1
        serving = self._checks["nginx"]["ok"] and self._state not in ("failed", "stopping")
        if serving != self._serving:
            self._serving = serving
            if serving:
                self._sync.request()  # prove and report what came up
            else:
                log.warning("This node cannot serve: %s", self._checks["nginx"]["message"])
            self._leadership.reconsider()
        # Not with a DATABASE_URL that seems wrong or a version that cannot use the database, though it serves what it
        # served last: Swarm shall roll that back.
        if self._state == "starting" and serving and self._checks["api"]["ok"] and not self._misconfigured:
            self._state = "ready"
            self._once_ready = True
            self._guard.was_ready()
            log.info("Ready: NGINX serves release %s", self._sync.release)

    def _write_status(self) -> None:
        nginx, api = self._supervisor.child("nginx"), self._supervisor.child("api")
        self._status.write(
            {
                "instance_id": str(self._instance_id),
                "node": self._settings.node_name,
                "task_id": self._settings.task_id,
                "version": __version__,
                "pid": os.getpid(),
                "state": self._state,
                "once_ready": self._once_ready,
                "failure": self._failure,
                "leader": self._leadership.is_leader(),
                "standby": self._leadership.state is leading.State.STANDBY,
                "term": self._leadership.term,
                "database": {
                    "ok": self._database_health.look(self._events.connected)["ok"],
                    "error": self._database_health.error,
                    "last_ok_at": self._database_health.last_ok_at,
                },
                "nginx": {
                    "running": bool(nginx and nginx.running),
                    "pid": nginx.pid if nginx else None,
                    "release": self._sync.release,
                    "error": self._sync.error,
                },
                "api": {"running": bool(api and api.running)},
                "revision": self._sync.revision,
                "quarantined": {str(site): message for site, message in self._sync.quarantined.items()},
                "checks": self._checks,
                "notes": {"shared_copy": note} if (note := self._shared.note()) else {},
            }
        )

"""The table of jobs: what runs when (APScheduler). Leader-only jobs start with a term and stop with it."""

import logging
from collections.abc import Callable
from datetime import timedelta

from apscheduler.schedulers.background import BackgroundScheduler

from lyttle_ops.clock import Clock
from lyttle_ops.cluster.leadership import TRUST_WINDOW
from lyttle_ops.cluster.members import HEARTBEAT_INTERVAL

log = logging.getLogger(__name__)

RENEWAL_CHECK = timedelta(hours=12)
PRUNING = timedelta(hours=1)
_LEADER_ONLY = ("renewal", "first renewal", "pruning")


class Schedule:
    """Heartbeats from `start` on; `renew` and `prune` between `begin_term` and `end_term`."""

    def __init__(
        self, clock: Clock, heartbeat: Callable[[], None], renew: Callable[[], None], prune: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._renew = renew
        self._prune = prune
        self._scheduler = BackgroundScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1})
        self._scheduler.add_job(heartbeat, "interval", seconds=HEARTBEAT_INTERVAL, id="heartbeat")

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def heartbeat_now(self) -> None:
        """PostgreSQL is back: it need not wait for the next heartbeat."""
        self._scheduler.modify_job("heartbeat", next_run_time=self._clock.now())

    def begin_term(self, settled: bool) -> None:
        """`settled`: no predecessor can still believe that it leads, so the first checks may come at once."""
        first = self._clock.now() + timedelta(seconds=0 if settled else TRUST_WINDOW + 0.1)
        jobs = self._scheduler
        jobs.add_job(self._renew, "date", run_date=first, id="first renewal", replace_existing=True)
        jobs.add_job(
            self._renew, "interval", seconds=RENEWAL_CHECK.total_seconds(), id="renewal", replace_existing=True
        )
        jobs.add_job(self._prune, "interval", seconds=PRUNING.total_seconds(), id="pruning", replace_existing=True)

    def end_term(self) -> None:
        for job in _LEADER_ONLY:
            if self._scheduler.get_job(job) is not None:
                self._scheduler.remove_job(job)

    def mend(self) -> None:
        """APScheduler goes by the wall clock: when that was set back, the next heartbeat lies far away."""
        job = self._scheduler.get_job("heartbeat") if self._scheduler.running else None
        if job is None or job.next_run_time is None:
            return
        wait = (job.next_run_time - self._clock.now()).total_seconds()
        if wait > HEARTBEAT_INTERVAL + 2:
            log.warning("The clock was set back; jobs are scheduled anew")
            for each in self._scheduler.get_jobs():
                each.modify(next_run_time=self._clock.now())

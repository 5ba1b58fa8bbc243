"""Locks and leadership against a real PostgreSQL over TCP.

Floor for a lock: two bare psycopg round trips in the same run. Takeover: a leader in a process of its own is killed
with SIGKILL; the time until the standby in this process believes that it leads.
"""

import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from lyttle_ops.clock import SystemClock
from lyttle_ops.cluster.leadership import Leadership
from lyttle_ops.cluster.locks import Locks
from lyttle_ops.cluster.members import Member
from lyttle_ops.db import Database
from lyttle_ops.db.migrate import migrate
from lyttle_ops.local.postgres import PostgresServer

ROUNDS = 3000
TAKEOVERS = 20
HOST, PORT = "127.93.7.1", 17432

LEADER = """
import sys, time
from uuid import UUID
from lyttle_ops.clock import SystemClock
from lyttle_ops.cluster.leadership import Leadership
from lyttle_ops.cluster.members import Member
from lyttle_ops.db import Database
url, instance = sys.argv[1], UUID(sys.argv[2])
database = Database(url, "bench/leader", size=1)
Member(database, instance, "leader", "leader").heartbeat()
leadership = Leadership(database, instance, "leader", SystemClock())
leadership.start()
while True:
    if leadership.is_leader():
        print("leading", flush=True)
        time.sleep(3600)
    time.sleep(0.005)
"""


def percentiles(samples: list[float]) -> str:
    ordered = sorted(samples)
    return f"p50 {statistics.median(ordered) * 1e3:.3f} ms, p99 {ordered[int(len(ordered) * 0.99)] * 1e3:.3f} ms"


def timed(body: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    for _ in range(50):
        body()
    samples = []
    for _ in range(rounds):
        started = time.perf_counter()
        body()
        samples.append(time.perf_counter() - started)
    return samples


def bench_locks(url: str) -> None:
    database = Database(url, "bench", size=1)
    connection = database.connect()
    bare = timed(lambda: (connection.execute("SELECT 1"), connection.execute("SELECT 1")))
    locks = Locks(database)

    def acquire_and_release() -> None:
        lock = locks.try_acquire_lock("bench")
        assert lock
        lock.release()

    held = timed(acquire_and_release)
    print(f"two bare round trips           {percentiles(bare)}")
    ratio = statistics.median(held) / statistics.median(bare)
    print(f"lock acquire + release         {percentiles(held)}   ({ratio:.2f}× bare)")
    leadership = Leadership(database, uuid4(), "bench", SystemClock())
    asked = timed(leadership.is_leader)
    print(f"is_leader()                    p50 {statistics.median(asked) * 1e6:.2f} µs")
    locks.close()
    connection.close()
    database.close()


def bench_takeover(url: str) -> None:
    instance = uuid4()
    database = Database(url, "bench/standby", size=1)
    Member(database, instance, "standby", "standby").heartbeat()
    samples = []
    for _ in range(TAKEOVERS):
        leader = subprocess.Popen([sys.executable, "-c", LEADER, url, str(uuid4())], stdout=subprocess.PIPE, text=True)
        assert leader.stdout
        leader.stdout.readline()
        standby = Leadership(database, instance, "standby", SystemClock())
        standby.start()
        while standby.state.value != "standby":
            time.sleep(0.005)
        time.sleep(0.2)  # inside the lock
        leader.send_signal(signal.SIGKILL)
        killed = time.perf_counter()
        while not standby.is_leader():
            time.sleep(0.0002)
        samples.append(time.perf_counter() - killed)
        leader.wait()
        leader.stdout.close()
        standby.stop()
    print(f"takeover after kill -9 (n={TAKEOVERS})  {percentiles(samples)}, worst {max(samples) * 1e3:.1f} ms")
    database.close()


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lyttle-bench-"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "postgres", HOST, PORT, secrets.token_urlsafe(12))
    try:
        server.start()
        migrate(Database(server.url(), "bench/migrate", size=0))
        bench_locks(server.url())
        bench_takeover(server.url())
    finally:
        server.stop("immediate")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

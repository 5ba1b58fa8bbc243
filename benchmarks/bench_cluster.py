"""The whole cluster of `lyttle-ops local`, three nodes, with a counting proxy before its CA.

Prints: POST → HTTPS on all nodes; 50 names posted to three nodes at once; leader takeover after kill -9 (median of
20) and after SIGSTOP; boot with a CA that never answers; SQL statements of an idle node; memory; and fresh HTTPS
connections while PostgreSQL is away for a minute. (NGINX killed meanwhile: tests/cluster/test_bad_days.py.)
"""

import collections
import os
import re
import signal
import statistics
import time

import psutil

from tests.cluster.test_bad_days import Load, server
from tests.support.cluster import Cluster, at_once, running_cluster
from tests.support.wait import until

TAKEOVERS = 20
IDLE = 120.0  # seconds
AWAY = 60.0  # seconds


def first_certificate(cluster: Cluster) -> None:
    samples = []
    for number in range(10):
        cluster.ca.reset()
        started = time.monotonic()
        cluster.add(f"post-{number}.example.test", node=f"n{number % 3 + 1}")
        cluster.wait_for_certificate(f"post-{number}.example.test")
        samples.append(time.monotonic() - started)
        assert cluster.ca.orders == 1
    middle = statistics.median(samples)
    print(f"POST → certificate on 3 of 3      median {middle:.2f} s, worst {max(samples):.2f} s (n={len(samples)})")


def fifty(cluster: Cluster) -> None:
    cluster.ca.reset()
    names = [f"fifty-{number}.example.test" for number in range(50)]
    started = time.monotonic()
    at_once([lambda i=i, name=name: cluster.add(name, node=f"n{i % 3 + 1}") for i, name in enumerate(names)])

    def everywhere() -> bool:
        items = cluster.call("GET", "/certificates").json()["items"]
        done = [each for each in items if each["domains"][0] in names and each["installed"]["nodes"] == 3]
        return len(done) == 50

    until(everywhere, timeout=120, every=0.2)
    print(f"50 names at once → all 3 of 3     {time.monotonic() - started:.1f} s, {cluster.ca.orders} orders")


def takeovers(cluster: Cluster) -> None:
    samples = []
    for _ in range(TAKEOVERS):
        leader, standby = cluster.wait_settled()
        term = cluster.rows("SELECT term FROM leadership")[0]["term"]
        watching = cluster.watch_term()
        os.kill(cluster.pid(leader), signal.SIGKILL)
        started = time.monotonic()
        while next(watching) != (term + 1, standby):
            pass
        samples.append(time.monotonic() - started)
        until(lambda leader=leader: not cluster.local.processes()[leader].is_alive(), timeout=10)
        cluster.local.do("start", leader)
        cluster.wait_ready()
    print(
        f"takeover after kill -9 (n={TAKEOVERS})     median {statistics.median(samples) * 1e3:.0f} ms, "
        f"worst {max(samples) * 1e3:.0f} ms"
    )


def frozen(cluster: Cluster) -> None:
    leader, standby = cluster.wait_settled()
    term = cluster.rows("SELECT term FROM leadership")[0]["term"]
    watching = cluster.watch_term()
    pid = cluster.pid(leader)
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        while next(watching) != (term + 1, standby):
            pass
        took = time.monotonic() - started
        until(lambda: time.monotonic() - started > 30, timeout=40, every=0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: cluster.call("GET", "/health/ready", node=leader).status_code == 200, timeout=30)
    row = cluster.rows("SELECT term, node_name FROM leadership")[0]
    stands = f"term {row['term']} of {row['node_name']} stands"
    print(f"takeover after SIGSTOP            {took:.2f} s; thawed after 30 s: {stands}")
    assert (row["term"], row["node_name"]) == (term + 1, standby)


def hung_ca(cluster: Cluster) -> None:
    silent = cluster.ca.fault("*", action="hold", times=10_000)
    try:
        cluster.local.do("kill", "n3")
        started = time.monotonic()
        cluster.local.do("start", "n3")
        print(
            f"boot with a silent CA             {time.monotonic() - started:.2f} s to ready (with the CLI's own start)"
        )
    finally:
        silent.release()


def idle(cluster: Cluster) -> None:
    cluster.wait_ready()
    cluster.wait_settled()
    cluster.rows("ALTER SYSTEM SET log_statement = 'all'")
    cluster.rows("SELECT pg_reload_conf()")
    log = cluster.local.state_folder / "postgres" / "postgresql.log"
    time.sleep(5)  # until all sessions have the setting
    before = log.stat().st_size
    deadline = time.monotonic() + IDLE
    while time.monotonic() < deadline:  # as health checks would
        for node in cluster.nodes.values():
            cluster._session.get(f"{node['api']}/health/ready", timeout=5)
        time.sleep(5)
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode(errors="replace").splitlines()
    cluster.rows("ALTER SYSTEM RESET log_statement")
    cluster.rows("SELECT pg_reload_conf()")
    names = {str(row["id"])[:8]: row["node_name"] for row in cluster.rows("SELECT id, node_name FROM instances")}
    counts: collections.Counter[str] = collections.Counter()
    pings: collections.Counter[str] = collections.Counter()
    for line in lines:
        found = re.search(r"\] lyttle(?:-api)?/([0-9a-f]{8})\S* .*LOG: +(?:statement|execute [^:]*): *(.*)", line)
        if not found:
            continue
        node = names.get(found[1], found[1])
        (pings if "/lead/" in line and "advisory" not in line else counts)[node] += 1
    errors = sum("ERROR:" in line for line in lines)
    for node in sorted(cluster.nodes):
        print(
            f"idle statements of {node}             {counts[node] / IDLE * 60:.1f} a minute"
            + (f" + {pings[node] / IDLE * 60:.0f} pings" if pings[node] else "")
        )
    print(f"ERROR lines in PostgreSQL's log   {errors / IDLE * 60:.1f} a minute for the cluster")


def memory(cluster: Cluster) -> None:
    leader, _ = cluster.wait_settled()
    supervisor = psutil.Process(cluster.pid(leader))
    gunicorn = [child for child in supervisor.children(recursive=True) if "gunicorn" in " ".join(child.cmdline())]
    own = supervisor.memory_full_info()
    api = [child.memory_full_info() for child in gunicorn]
    print(f"memory of node (leader)           RSS {own.rss / 2**20:.0f} MB, PSS {own.pss / 2**20:.0f} MB")
    print(
        f"memory of gunicorn ({len(api)} processes)   RSS {sum(m.rss for m in api) / 2**20:.0f} MB, "
        f"PSS {sum(m.pss for m in api) / 2**20:.0f} MB"
    )


def database_away(cluster: Cluster) -> None:
    cluster.add("steady.example.test")
    cluster.wait_for_certificate("steady.example.test")
    database = server(cluster)
    with Load(cluster, "steady.example.test") as load:
        database.stop("immediate")
        away = time.monotonic()
        until(lambda: time.monotonic() - away > AWAY, timeout=AWAY + 5, every=0.5)
        database.start()
        back = time.monotonic()
        cluster.wait_ready(timeout=60)
        cluster.wait_settled()
        took = time.monotonic() - back
    print(
        f"PostgreSQL away for {AWAY:.0f} s           {load.succeeded} fresh HTTPS requests, {len(load.failures)} failed"
    )
    print(f"after its return                  all ready, with leader and standby, in {took:.1f} s")


def main() -> None:
    with running_cluster() as cluster:
        first_certificate(cluster)
        fifty(cluster)
        memory(cluster)
        idle(cluster)
        hung_ca(cluster)
        frozen(cluster)
        takeovers(cluster)
        database_away(cluster)


if __name__ == "__main__":
    main()

"""Time of an authenticated GET /proxy against a bare Flask route, both in this run and process.

    .venv/bin/python benchmarks/bench_api.py [--requests N] [--entries N]

Starts a private PostgreSQL, adds entries, and calls the WSGI application in process: what is measured is this
project's code, its SQL and Flask, not a network. Prints p50 and p99 in milliseconds and statements a request.
"""

import argparse
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

from flask import Flask, jsonify

from lyttle_ops.accounts import create_user
from lyttle_ops.db import Database
from lyttle_ops.db.migrate import migrate
from lyttle_ops.local.postgres import PostgresServer
from lyttle_ops.proxies import ProxyInput, create_proxy
from lyttle_ops.settings import load
from webapi.app import close, create_app

HOST, PORT = "127.44.7.1", 15499
PASSWORD = "correct horse battery"


def measure(call: Callable[[], int], requests: int) -> tuple[float, float]:
    """p50 and p99 in milliseconds, after a warm-up."""
    for _ in range(max(10, requests // 10)):
        assert call() == 200
    times = []
    for _ in range(requests):
        started = time.perf_counter()
        assert call() == 200
        times.append((time.perf_counter() - started) * 1000)
    quantiles = statistics.quantiles(times, n=100)
    return statistics.median(times), quantiles[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--entries", type=int, default=20)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-api-"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "postgres", HOST, PORT, secrets.token_urlsafe(12), durable=False)
    try:
        server.start()
        run(server.url(), options.requests, options.entries)
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def run(url: str, requests: int, entries: int) -> None:
    database = Database(url, "bench")
    migrate(database)
    create_user(database, "admin", PASSWORD)
    with database.connection() as connection:
        for number in range(entries):
            values = {"domains": f"n{number}.example.com", "proxy_pass_host": "http://backend:8080", "ssl": True}
            create_proxy(connection, ProxyInput.model_validate(values))
    app = create_app(load({"DATABASE_URL": url, "MASTER_KEY": b64encode(bytes(32)).decode()}))
    client = app.test_client()
    answer = client.post("/auth/login", json={"username": "admin", "password": PASSWORD})
    bearer = {"Authorization": f"Bearer {answer.json['access_token']}"}

    bare_app = Flask("bare")

    @bare_app.get("/")
    def bare() -> object:
        return jsonify(ok=True)

    bare_client = bare_app.test_client()

    def round_trip() -> int:
        with database.connection() as connection:
            connection.execute("SELECT 1").fetchone()
        return 200

    rows: list[tuple[str, Callable[[], int]]] = [
        ("bare Flask route", lambda: bare_client.get("/").status_code),
        ("one SQL round trip through the pool", round_trip),
        ("GET /health/live", lambda: client.get("/health/live").status_code),
        ("GET /auth/me (token, session)", lambda: client.get("/auth/me", headers=bearer).status_code),
        (f"GET /proxy ({entries} entries)", lambda: client.get("/proxy", headers=bearer).status_code),
        ("GET /proxy/1", lambda: client.get("/proxy/1", headers=bearer).status_code),
    ]
    print(f"{'':<38}{'p50 ms':>8}{'p99 ms':>8}")
    for name, call in rows:
        median, slow = measure(call, requests)
        print(f"{name:<38}{median:8.2f}{slow:8.2f}")
    close(app)
    database.close()


if __name__ == "__main__":
    sys.exit(main())

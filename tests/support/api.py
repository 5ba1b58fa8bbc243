"""The control API for tests: an application on a database, a client that is logged in, a real gunicorn."""

import json
import os
import secrets
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import requests
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from lyttle_ops.accounts import create_user
from lyttle_ops.db import Database
from lyttle_ops.local.postgres import PostgresServer
from lyttle_ops.settings import Settings, load
from tests.support import wait
from webapi.app import close, create_app

MASTER_KEY = b64encode(bytes(range(32))).decode()  # the same on all nodes of a test
USERNAME = "admin"
PASSWORD = "correct horse battery"


def environment(database_url: str, **changes: str) -> dict[str, str]:
    """The environment of one node's API."""
    return {
        "DATABASE_URL": database_url,
        "MASTER_KEY": MASTER_KEY,
        "NODE_NAME": "node1",
        "API_LISTEN": "127.0.0.1:3003",
        **changes,
    }


def settings(database_url: str, **changes: str) -> Settings:
    """The settings of one node's API."""
    return load(environment(database_url, **changes))


@contextmanager
def shared_database(postgres: PostgresServer, template: str) -> Iterator[str]:
    """URL of a migrated database with the admin, for tests of one module that change nothing in it."""
    name = f"shared_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        database = Database(postgres.url(name), "test", size=1)
        add_admin(database)
        database.close()
        yield postgres.url(name)
    finally:
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def application(database_url: str, instance_dir: Path | None = None, **changes: str) -> Iterator[Any]:
    """One node's application, its connections given back at the end."""
    app = create_app(settings(database_url, **changes), instance_dir)
    try:
        yield app
    finally:
        close(app)


def add_admin(database: Database) -> None:
    """The user that `Client.log_in` logs in."""
    create_user(database, USERNAME, PASSWORD)


class Client:
    """A test client that sends its access token; answers are checked to be JSON in the one shape."""

    def __init__(self, app: Any, address: str = "192.0.2.1") -> None:
        self.http: FlaskClient = app.test_client()
        self.address = address
        self.access_token = ""
        self.refresh_token = ""

    def log_in(self, username: str = USERNAME, password: str = PASSWORD) -> "Client":
        answer = self.post("/auth/login", {"username": username, "password": password})
        assert answer.status_code == 200, answer.text
        self.access_token, self.refresh_token = answer.json["access_token"], answer.json["refresh_token"]
        return self

    def request(self, method: str, path: str, token: str | None = None, **options: Any) -> TestResponse:
        headers = dict(options.pop("headers", {}))
        token = self.access_token if token is None else token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        base = {"REMOTE_ADDR": self.address}
        answer = self.http.open(path, method=method, headers=headers, environ_base=base, **options)
        if answer.status_code >= 400:
            check_error_shape(answer.json)
        return answer

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.request("POST", path, **({} if body is None else {"json": body}), **options)

    def patch(self, path: str, body: Any, **options: Any) -> TestResponse:
        return self.request("PATCH", path, json=body, **options)

    def delete(self, path: str, **options: Any) -> TestResponse:
        return self.request("DELETE", path, **options)


def check_error_shape(body: Any) -> None:
    """AssertionError unless `body` is an error in the one shape."""
    assert set(body) == {"error"}, body
    error = body["error"]
    assert set(error) == {"code", "message", "fields"}, body
    assert error["code"].replace("_", "").isalpha(), body
    assert error["code"].islower(), body
    assert error["message"], body
    for field in error["fields"]:
        assert set(field) == {"field", "message"}, body


def code_of(answer: TestResponse) -> str:
    """The code of an error answer."""
    return str(answer.json["error"]["code"])


def fields_of(answer: TestResponse) -> dict[str, str]:
    """The fields of an error answer."""
    return {field["field"]: field["message"] for field in answer.json["error"]["fields"]}


def write_status(folder: Path, **changes: Any) -> None:
    """A status file as the node of a healthy instance writes it."""
    status = {
        "instance_id": "00000000-0000-0000-0000-000000000001",
        "node": "node1",
        "version": "0.1.0",
        "pid": 1,
        "written_at": time.time(),
        "state": "ready",
        "failure": None,
        "leader": True,
        "term": 3,
        "database": {"ok": True, "error": None, "last_ok_at": time.time()},
        "nginx": {"running": True, "pid": 2, "release": "abc", "error": None},
        "api": {"running": True},
        "revision": 7,
        "quarantined": {},
        "checks": {name: {"ok": True, "message": ""} for name in ("nginx", "release", "database", "api")},
        **changes,
    }
    (folder / "status.json").write_text(json.dumps(status))


@contextmanager
def gunicorn(database_url: str, listen: str, instance_dir: Path, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real gunicorn as the supervisor starts it, answering on `listen`; stopped at the end whatever happens."""
    log = instance_dir / "gunicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "python:webapi.gunicorn_conf", "webapi.app:create_app()"],
            env={
                "PATH": os.environ["PATH"],
                **environment(database_url, **changes),
                "API_LISTEN": listen,
                "LYTTLE_INSTANCE_DIR": str(instance_dir),
                "LYTTLE_INSTANCE_ID": "00000000-0000-0000-0000-000000000001",
            },
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait.until(
            lambda: requests.get(f"http://{listen}/health/live", timeout=2).ok, 20, f"gunicorn; {log.read_text()}"
        )
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(25)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def random_domain() -> str:
    """A name nobody else uses."""
    return f"{secrets.token_hex(6)}.example.com"

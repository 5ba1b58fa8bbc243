"""The application: `gunicorn -c python:webapi.gunicorn_conf 'webapi.app:create_app()'`."""

import logging
import os
import time
from pathlib import Path

from flask import Response, g, request

from lyttle_ops import settings as environment
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.db import Database
from lyttle_ops.settings import Settings
from webapi import auth, bodies, certificates, cluster, documents, errors, health, metrics, proxies, tokens
from webapi.services import Services

log = logging.getLogger(__name__)

POOL_SIZE = 4  # connections; the budget of a node counts them


def create_app(settings: Settings | None = None, instance_dir: Path | None = None) -> documents.API:
    """The WSGI application. It starts without the database and answers 503 until that is there.

    `settings` default to the environment's, `instance_dir` to LYTTLE_INSTANCE_DIR, which the node sets.
    Raises ConfigurationError.
    """
    settings = settings or environment.load()
    folder = os.environ.get("LYTTLE_INSTANCE_DIR")
    if instance_dir is None and folder:
        instance_dir = Path(folder)
    keyring = Keyring(*settings.master_keys())
    instance = os.environ.get("LYTTLE_INSTANCE_ID", "")[:8]
    database = Database(
        settings.database_url.get_secret_value(), f"lyttle/{instance}/api/{settings.node_name}", size=POOL_SIZE
    )

    app = documents.make_app("webapi")
    app.json.sort_keys = False  # type: ignore[attr-defined]  # Flask types only the base class
    app.extensions["lyttle_ops"] = Services(settings, database, keyring, instance_dir)
    # In this order a request is counted, then authenticated, then looked at.
    metrics.register(app)
    tokens.register(app, keyring.derive("jwt"))
    bodies.register(app)
    errors.register(app)
    documents.register(app)
    app.after_request(_log)
    app.validation_error_callback = errors.validation_response
    for room in (auth, proxies, certificates, cluster, health, metrics):
        app.register_api(room.blueprint)
    return app


def close(app: documents.API) -> None:
    """Give the application's connections back; for tests and short-lived processes."""
    services: Services = app.extensions["lyttle_ops"]
    services.database.close()


def _log(response: Response) -> Response:
    """One line for each request that may change something; reading is not worth one."""
    if request.method in ("POST", "PATCH", "DELETE"):
        session = g.get("session")
        log.info(
            "%s %s %d %.0f ms %s",
            request.method,
            request.path,
            response.status_code,
            (time.monotonic() - g.started) * 1000 if "started" in g else 0,
            session.username if session else "-",
        )
    return response

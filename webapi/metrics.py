"""/metrics: Prometheus text, the node process's and this one's.

It asks for no token: the API listens on loopback, and a scraper runs on the node or in its network namespace.
It holds counts and names of this cluster's nodes, nothing secret.
"""

import time
from typing import Any

from flask import Flask, Response, current_app, g, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest

from webapi.services import services

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

blueprint = APIBlueprint("metrics", __name__, abp_tags=[Tag(name="health", description="for health checks; no token")])


class RequestMetrics:
    """Counts this process's requests. One worker process, so no sharing between processes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="lyttle_api", registry=self.registry)
        self._requests = Counter(
            "lyttle_api_requests", "Requests to the control API", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "lyttle_api_request_seconds",
            "Time to answer a request",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def count(self, response: Response) -> Response:
        """Count the current request; the route's pattern is the label, so that ids make no new series."""
        rule = request.url_rule.rule if request.url_rule else "unknown"
        method = request.method if request.url_rule else "ANY"
        self._requests.labels(method, rule, str(response.status_code)).inc()
        if "started" in g:
            self._seconds.labels(method, rule).observe(time.monotonic() - g.started)
        return response


def register(app: Flask) -> None:
    """Count every request of `app`."""
    counted = RequestMetrics()
    app.extensions["lyttle_ops_metrics"] = counted
    app.before_request(_start)
    app.after_request(counted.count)


_TEXT: dict[Any, Any] = {
    200: {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@blueprint.get("/metrics", responses=_TEXT)
def metrics() -> Response:
    """Prometheus metrics of this instance"""
    own = generate_latest(current_app.extensions["lyttle_ops_metrics"].registry).decode()
    node = ""
    folder = services().instance_dir
    if folder is not None:
        try:
            node = (folder / "metrics.prom").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            node = ""  # the node process is starting; its absence shows in /health/ready
    if node and not node.endswith("\n"):
        node += "\n"
    return Response(node + own, content_type=CONTENT_TYPE)


def _start() -> None:
    g.started = time.monotonic()

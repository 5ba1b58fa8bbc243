"""Health and metrics: from files of the instance, without a token and without SQL."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Client, application, code_of, fields_of, write_status

NOWHERE = "postgresql://nobody:secret@127.0.0.1:1/none"  # any SQL would fail


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with application(NOWHERE, tmp_path) as app:
        yield Client(app)


def test_live_needs_nothing_but_the_process(client: Client) -> None:
    answer = client.get("/health/live")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_ready_says_what_the_node_says(client: Client, tmp_path: Path) -> None:
    write_status(tmp_path, leader=True, term=3, revision=7)
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    assert answer.json["status"] == "ready"
    assert (answer.json["node"], answer.json["leader"], answer.json["term"]) == ("node1", True, 3)
    assert answer.json["checks"]["nginx"] == {"ok": True, "message": ""}


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"state": "starting"}, {"node": "is starting"}),
        ({"state": "stopping"}, {"node": "is stopping"}),
        ({"state": "failed", "failure": "5 restarts in 5 minutes"}, {"node": "5 restarts in 5 minutes"}),
        (
            {"checks": {"nginx": {"ok": False, "message": "not running"}, "database": {"ok": True, "message": ""}}},
            {"nginx": "not running"},
        ),
        (
            {"checks": {"nginx": {"ok": False, "message": "x"}, "database": {"ok": False, "message": ""}}},
            {"nginx": "x", "database": "failing"},
        ),
    ],
)
def test_not_ready_names_every_failing_check(
    client: Client, tmp_path: Path, changes: dict[str, Any], failing: dict[str, str]
) -> None:
    write_status(tmp_path, **changes)
    answer = client.get("/health/ready")
    assert (answer.status_code, code_of(answer)) == (503, "not_ready")
    assert fields_of(answer) == failing


def test_an_old_status_is_not_believed(client: Client, tmp_path: Path) -> None:
    """A node process that hangs leaves a file that says all is well."""
    write_status(tmp_path, written_at=time.time() - 11)
    assert "11 s old" in fields_of(client.get("/health/ready"))["node"]
    write_status(tmp_path, written_at=time.time() - 8)
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("content", [None, "", "{", "[]", "\xff"])
def test_a_status_that_is_missing_or_broken_is_not_ready(client: Client, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content, "latin-1")
    assert fields_of(client.get("/health/ready")).keys() == {"node"}


@pytest.mark.parametrize("status", [{}, {"state": "ready"}, {"written_at": "now"}, {"checks": 5}, {"term": "x"}])
def test_a_status_of_another_version_is_not_ready_instead_of_an_error(
    client: Client, tmp_path: Path, status: dict[str, Any]
) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"written_at": time.time(), "state": "ready", **status}))
    assert client.get("/health/ready").status_code == 503


def test_metrics_hold_the_node_s_and_the_api_s_own(client: Client, tmp_path: Path) -> None:
    (tmp_path / "metrics.prom").write_text("# TYPE lyttle_lock_waits counter\nlyttle_lock_waits_total 3")
    client.get("/health/live")
    client.get("/proxy/17")
    client.get("/nowhere")
    answer = client.get("/metrics")
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert "lyttle_lock_waits_total 3" in lines
    assert 'lyttle_api_requests_total{method="GET",route="/health/live",status="200"} 1.0' in lines
    # Ids and unknown paths make no series of their own, or anybody could make any number of them.
    assert 'lyttle_api_requests_total{method="GET",route="/proxy/<int:proxy_id>",status="401"} 1.0' in lines
    assert 'lyttle_api_requests_total{method="ANY",route="unknown",status="404"} 1.0' in lines
    assert any(line.startswith("lyttle_api_process_resident_memory_bytes ") for line in lines)
    assert any(line.startswith('lyttle_api_request_seconds_bucket{le="0.001"') for line in lines)


def test_metrics_answer_before_the_node_wrote_its_own(client: Client) -> None:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert "lyttle_api_requests_total" in answer.text

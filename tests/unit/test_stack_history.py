"""What the history of releases (lyttle_release) makes of deploys that did not get to their end."""

import hashlib
import time
from typing import Any

import pytest

from tests.support import modules

history = modules.load("lyttle_release")

NODE = "lyttlenginx_lyttlenginx"
BEFORE = [{"id": "n1", "answers": {"http://a.example/": "2xx"}}]


def record(number: int, result: str, age: float = 60, **more: Any) -> dict[str, Any]:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - age))
    return {"number": number, "result": result, "started_at": started, **more}


def test_a_deploy_that_goes_on_compares_with_what_the_good_release_answered() -> None:
    worse = history.packed([{"id": "n1", "answers": {"http://a.example/": "5xx"}}])
    records = [
        record(4, "interrupted", baseline=worse),
        record(3, "interrupted", baseline=history.packed(BEFORE)),
        record(2, "succeeded", baseline=worse),
        record(1, "failed", baseline=worse),
    ]
    assert history.answers_before(records, NODE) == BEFORE
    assert history.answers_before(records[2:], NODE) == []


@pytest.mark.parametrize("age", [1000, -1000])
def test_old_answers_are_no_measure_and_neither_are_those_of_another_clock(age: float) -> None:
    fresh = record(4, "interrupted", baseline=history.packed(BEFORE))
    assert history.answers_before([fresh, record(3, "failed", age, baseline=history.packed(BEFORE))], NODE) == []


def test_the_200_domains_of_a_proof_fit_into_a_record_for_thirty_nodes() -> None:
    names = [f"{hashlib.sha256(bytes([i])).hexdigest()[:20]}.example.com" for i in range(200)]
    answers = {f"{scheme}://{name}/": "2xx" for name in names for scheme in ("http", "https")}
    nodes = [{"id": f"node{i}", "hostname": f"n{i}", "answers": answers} for i in range(30)]
    assert 0 < len(history.packed(nodes)) < 100_000
    assert history.packed([]) == ""


def test_a_deploy_that_put_the_good_release_back_ends_the_story_of_those_before_it() -> None:
    fresh = history.packed(BEFORE)
    records = [
        record(8, "interrupted", image="c", baseline=fresh),
        record(7, "failed", image="b", specs={NODE: "good"}, baseline=history.packed([{"id": "n1", "answers": {}}])),
        record(6, "interrupted", age=5000, image="b", baseline=fresh),
        record(5, "succeeded", image="a", specs={NODE: "good"}),
    ]
    assert history.left_by(records, "c", NODE)["number"] == 8
    assert history.left_by(records, "b", NODE) is None  # put there by hand
    assert history.answers_before(records, NODE) == BEFORE

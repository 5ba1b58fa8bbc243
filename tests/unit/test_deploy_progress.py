"""What is read from Ansible's events."""

from typing import Any

import pytest

from lyttle_ops.deploy.progress import Progress, State, explain


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ({"msg": "Task failed: No space left."}, "No space left."),
        ({"msg": ["One.", "Two."]}, "One.; Two."),
        ({"censored": "…"}, "its message is hidden, since it may hold secrets"),
        ({"msg": "non-zero return code", "rc": 2, "cmd": ["x"], "stderr": "a\nx: no\n"}, "non-zero return code: x: no"),
        (
            {"msg": "MODULE FAILURE: see stderr\nmore", "module_stderr": "Traceback …\nOSError: disk"},
            "MODULE FAILURE: see stderr: OSError: disk",
        ),
        (
            {
                "msg": "One or more items failed",
                "results": [{"msg": "fine"}, {"failed": True, "msg": "a is bad"}, {"failed": True, "msg": "b is bad"}],
            },
            "a is bad; b is bad",
        ),
        (
            {"msg": "Timed out after 30 second(s).", "timedout": {"frame": "…", "period": 30}},
            "no answer within 30 s: the host or its Docker engine hangs, or is overloaded",
        ),
        ({}, "it failed without a message"),
    ],
)  # fmt: skip
def test_a_failed_task_in_a_sentence(response: dict[str, Any], said: str) -> None:
    assert explain(response) == said


def test_a_step_is_as_bad_as_its_worst_host() -> None:
    progress = started("Update")
    progress.take(event("runner_on_ok", host="a", res={"changed": True}))
    progress.take(event("runner_on_ok", host="b", res={"changed": False}))
    progress.take(event("runner_on_failed", host="c", res={"msg": "no"}))
    assert progress.take(event("playbook_on_stats", failures={"c": 1}))
    (step,) = progress.finished
    assert step.state is State.FAILED
    assert step.messages == {"c": "no"}
    assert [(each.host, each.step, each.message) for each in progress.failures] == [("c", "Update", "no")]
    assert progress.hosts["a"].changed == 1


def test_what_a_rescue_dealt_with_is_no_failure_in_the_end() -> None:
    progress = started("Try")
    progress.take(event("runner_on_failed", host="a", res={"msg": "not this time"}))
    progress.take(event("playbook_on_stats", failures={}, rescued={"a": 1}))
    assert progress.failures == []


def test_a_step_that_ran_nowhere_is_not_shown() -> None:
    progress = started("Only sometimes")
    progress.take(event("runner_on_skipped", host="a"))
    assert not progress.take(event("playbook_on_stats"))
    assert progress.finished == []


def test_the_playbooks_word_counts_as_soon_as_it_is_said() -> None:
    progress = started("Tell", task_action="ansible.builtin.set_stats")
    for word in ("refused", "failed"):
        stats = {"ansible_stats": {"data": {"lyttle_outcome": word}}}
        progress.take(event("runner_on_ok", host="a", task_action="ansible.builtin.set_stats", res=stats))
        assert progress.outcome == word
    assert progress.finished == []  # people need not see it


def test_a_result_too_large_for_its_own_event_comes_with_the_last_one() -> None:
    progress = started("Tell", task_action="set_stats")
    progress.take(event("runner_on_ok", host="a", task_action="set_stats", res={}))
    progress.take(event("playbook_on_stats", artifact_data={"lyttle_result": {"nodes": []}}))
    assert progress.result == {"nodes": []}


def event(name: str, /, **data: Any) -> dict[str, Any]:
    return {"event": name, "event_data": data}


def started(step: str, **data: Any) -> Progress:
    progress = Progress()
    progress.take(event("playbook_on_play_start", name="Play", pattern="all"))
    progress.take(event("playbook_on_task_start", name=step, **data))
    return progress

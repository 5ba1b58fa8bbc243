"""What a rollout concludes from Swarm's answers: when an update has ended, and what is known of one that has not."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import modules
from tests.support.operator import ROOT

yaml = pytest.importorskip("yaml", reason="comes with the extra [control]")

rollout, engine = modules.load("lyttle_rollout"), modules.load("lyttle_engine")

OLD, NEW = "lyttle-ops:1", "lyttle-ops:2"
SINCE = "2026-01-02T00:00:00Z"  # by another clock than this machine's


def service(state: str = "", image: str = NEW, message: str = "") -> dict[str, Any]:
    placement = {"Constraints": ["node.labels.lyttle.edge == true"]}
    found: dict[str, Any] = {
        "Spec": {"TaskTemplate": {"ContainerSpec": {"Image": image}, "Placement": placement}, "Mode": {"Global": {}}}
    }
    if state:
        found["UpdateStatus"] = {"State": state, "Message": message, "StartedAt": SINCE}
    return found


def node(name: str, state: str = "ready") -> dict[str, Any]:
    return {
        "ID": f"id-{name}",
        "Description": {"Hostname": name},
        "Spec": {"Role": "worker", "Availability": "active", "Labels": {"lyttle.edge": "true"}},
        "Status": {"State": state, "Addr": "192.0.2.1"},
    }


def task(name: str, image: str, state: str = "running", desired: str = "running", error: str = "") -> dict[str, Any]:
    return {
        "ID": f"task-{name}-{image}-{state}",
        "NodeID": f"id-{name}",
        "Spec": {"ContainerSpec": {"Image": image}},
        "DesiredState": desired,
        "Status": {"State": state, "Err": error},
        "CreatedAt": SINCE,
    }


WANTED = engine.spec_digest(service()["Spec"])


class Swarm:
    """One answer a look; the last one stays. `looks` counts them."""

    def __init__(self, nodes: list[dict[str, Any]], *moments: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        self._nodes, self._moments, self.looks = nodes, moments, 0

    def service(self, name: str) -> dict[str, Any]:
        self.looks += 1
        return self._moments[min(self.looks, len(self._moments)) - 1][0]

    def tasks(self, name: str) -> list[dict[str, Any]]:
        return self._moments[min(self.looks, len(self._moments)) - 1][1]

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def task_logs(self, task_id: str) -> list[str]:
        return []


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an action on a Swarm; half a second passes between two looks, and every proof succeeds."""
    at = [0.0]

    def sleep(seconds: float) -> None:
        at[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: at[0], sleep=sleep)
    good = rollout.proof.Proof(True, "", 5, 0, 0, [], {})
    monkeypatch.setattr(rollout, "time", clock)
    monkeypatch.setattr(rollout, "check_parent", lambda: None)
    monkeypatch.setattr(rollout.proof, "prove", lambda *_: good)
    monkeypatch.setattr(rollout.proof, "count_bad", lambda *_: 0)

    def act(swarm: Swarm, action: str, **options: Any) -> dict[str, Any]:
        monkeypatch.setattr(rollout, "Engine", lambda _host: swarm)
        defaults = {
            "docker_host": None, "service": "lyttlenginx_ports", "http_port": 80, "https_port": 443, "addresses": {},
            "only": [], "lock_id": "", "lock_seconds": 600, "baseline": [], "wanted": "", "known_tasks": [],
            "node_seconds": 10, "proven": [], "proof_seconds": 15, "put_back": {},
        }  # fmt: skip
        result: dict[str, Any] = getattr(rollout.Rollout({**defaults, **options}), action)()
        return result

    return act


def test_an_update_that_swarm_has_not_begun_is_not_done(run: Run) -> None:
    old, new = [task("n1", OLD)], [task("n1", NEW), task("n1", OLD, "shutdown", "shutdown")]
    swarm = Swarm(
        [node("n1")],
        (service(), old),
        (service("updating"), old),
        (service("updating"), new),
        (service("completed"), new),
    )
    assert run(swarm, "finish", wanted=WANTED)["outcome"] == "proved"
    assert swarm.looks == 4


def test_a_change_that_restarts_no_task_is_done_at_once(run: Run) -> None:
    swarm = Swarm([node("n1")], (service(), [task("n1", NEW)]))
    assert run(swarm, "finish", wanted=WANTED)["outcome"] == "proved"
    assert swarm.looks == 1


def test_an_update_that_swarm_took_back_names_the_service_and_the_error(run: Run) -> None:
    tasks = [task("n1", OLD), task("n1", NEW, "failed", "shutdown", "task: non-zero exit (1)")]
    swarm = Swarm([node("n1")], (service("rollback_started", OLD), tasks))
    told = run(swarm, "finish", wanted=WANTED)
    assert told["outcome"] == "swarm"
    assert "put the old version of lyttlenginx_ports back" in told["reason"]
    assert "n1 ended: task: non-zero exit (1)" in told["reason"]


@pytest.mark.parametrize("action", ["next", "finish"])
def test_what_somebody_else_gave_the_service_meanwhile_is_not_proved(run: Run, action: str) -> None:
    # No node's clock has anything to do with it, and Swarm calls that update completed.
    tasks = [task("n1", OLD), task("n1", NEW, "failed", "shutdown", "exit 3")]
    told = run(Swarm([node("n1")], (service("completed", OLD), tasks)), action, wanted=WANTED)
    assert told["outcome"] == "swarm"
    assert told["reason"] == (
        "Somebody changed lyttlenginx_ports in the middle of this deploy; its image is now lyttle-ops:1."
        " Its task on n1 ended: exit 3. It wrote no log."
    )


def test_the_next_node_of_an_update_that_was_taken_back_long_ago_by_its_clock_is_not_proved(run: Run) -> None:
    taken_back = service("rollback_completed", OLD)
    taken_back["UpdateStatus"]["StartedAt"] = "1999-01-01T00:00:00Z"
    assert run(Swarm([node("n1")], (taken_back, [task("n1", OLD)])), "next", wanted=WANTED)["outcome"] == "swarm"


def test_tasks_that_failed_before_an_update_are_not_its_own(run: Run) -> None:
    old, new = task("n1", NEW, "failed", "shutdown", "of yesterday"), task("n1", NEW, "rejected", "shutdown", "of now")
    swarm = Swarm([node("n1")], (service("rollback_started", OLD), [old, new]))
    assert "of now" in run(swarm, "next", wanted=WANTED, known_tasks=[old["ID"]])["reason"]


def test_a_restart_by_hand_and_an_older_story_do_not_stop_a_proof(run: Run) -> None:
    restarted = service("rollback_completed")
    restarted["Spec"]["TaskTemplate"]["ForceUpdate"] = 1
    again = task("n1", NEW)
    again["Spec"]["ForceUpdate"] = 1
    untouched = engine.spec_digest(
        service()["Spec"] | {"TaskTemplate": {**service()["Spec"]["TaskTemplate"], "ForceUpdate": 0}}
    )
    assert run(Swarm([node("n1")], (restarted, [again])), "next", wanted=untouched)["outcome"] == "proved"


@pytest.mark.parametrize("name", ["prove", "release", "ports_updated"])
def test_each_proof_of_a_deploy_is_told_what_is_wanted(name: str) -> None:
    tasks = yaml.safe_load((ROOT / f"roles/stack/tasks/{name}.yml").read_text())
    proofs = [task["lyttle_rollout"] for task in tasks if "lyttle_rollout" in task]
    proofs = [options for options in proofs if options["action"] in ("next", "finish")]
    assert proofs
    assert all({"wanted", "known_tasks"} <= options.keys() for options in proofs)


def test_an_update_that_does_not_end_says_where_it_is(run: Run) -> None:
    nodes = [node("n1"), node("n2"), node("n3", "down")]
    tasks = [task("n1", NEW, "preparing"), task("n2", OLD)]
    told = run(Swarm(nodes, (service("updating", message="update in progress"), tasks)), "finish", wanted=WANTED)
    assert told["outcome"] == "late"
    assert told["reason"] == (
        "the update of lyttlenginx_ports did not end within 10 s: the task on n1 is preparing; n2 still runs another"
        " version (lyttle-ops:1); Swarm calls its update updating (update in progress);"
        " n3 is down, so what it runs is unknown"
    )


def test_a_rollback_that_swarm_paused_is_named_with_the_nodes_it_left(run: Run) -> None:
    nodes = [node("n1"), node("n2"), node("n3", "unknown")]
    tasks = [task("n1", OLD), task("n2", OLD, "failed", "shutdown", "no space left")]
    told = run(Swarm(nodes, (service("rollback_paused", OLD), tasks)), "settle")
    assert told["outcome"] == "late"
    assert [each["hostname"] for each in told["nodes"]] == ["n1"]
    assert told["reason"] == (
        "the task on n2 is failed (no space left); Swarm calls its update rollback_paused;"
        " n3 is unknown, so what it runs is unknown"
    )


def test_the_old_version_is_back_when_every_node_was_seen_serving_it(run: Run) -> None:
    nodes, tasks = [node("n1"), node("n2")], [task("n1", OLD), task("n2", OLD)]
    told = run(
        Swarm(nodes, (service("rollback_started", OLD), tasks), (service("rollback_completed", OLD), tasks)), "settle"
    )
    assert (told["outcome"], len(told["nodes"])) == ("proved", 2)


def test_nothing_is_back_when_no_node_was_seen(run: Run) -> None:
    told = run(Swarm([node("n1", "down")], (service("", OLD), [])), "settle")
    assert (told["outcome"], told["nodes"]) == ("late", [])
    assert told["reason"] == "n1 is down, so what it runs is unknown"


def test_a_node_that_runs_what_an_interrupted_deploy_left_is_measured_by_what_it_answered_before(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"http://a/": "5xx"}  # b gave no answer in time
    monkeypatch.setattr(rollout.proof, "baseline", lambda *_: dict(now))
    was = {"http://a/": "2xx", "http://b/": "2xx", "http://gone/": "2xx"}
    tasks = [task("n1", NEW), task("n2", OLD), task("n3", "left by the deploy before")]
    before = [{"id": f"id-{name}", "task": f"task-{name}-{OLD}-running", "answers": was} for name in ("n1", "n2", "n3")]
    swarm = Swarm([node("n1"), node("n2"), node("n3")], (service(), tasks))
    domains = [{"domain": "a"}, {"domain": "b"}]
    n1, n2, n3 = run(swarm, "baseline", domains=domains, baseline=before)["nodes"]
    assert (n1["answers"], n1["measure"]) == ({"http://a/": "2xx", "http://b/": "2xx"}, False)
    assert (n2["answers"], n2["measure"]) == (now, True)
    assert (n3["answers"], n3["measure"]) == ({"http://a/": "2xx", "http://b/": "2xx"}, False)
    n1, *_ = run(swarm, "baseline", domains=domains)["nodes"]
    assert (n1["answers"], n1["measure"]) == (now, True)

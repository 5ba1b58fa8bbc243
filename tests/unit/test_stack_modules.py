"""What the role stack's modules conclude: which release to go back to, whose lock is dead, where a service runs."""

import base64
import json
import os
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from lyttle_ops.deploy.owner import owner
from tests.support import modules
from tests.support.fake_engine import fake_engine

release, lock, secrets, image = (modules.load(f"lyttle_{name}") for name in ("release", "lock", "secrets", "image"))
mode, rollout, stack = (modules.load(f"lyttle_{name}") for name in ("mode", "rollout", "stack"))
engine, tasks = modules.load("lyttle_engine"), modules.load("lyttle_tasks")

SERVICE = "lyttlenginx_lyttlenginx"
MODE = {"kind": "global"}


def record(number: int, version: str, result: str = "succeeded", **changes: Any) -> dict[str, Any]:
    """A record as the history holds it."""
    reference = f"registry.example/lyttle-ops:{version}@sha256:{version.replace('.', '0') * 4}"
    made: dict[str, Any] = {
        "number": number,
        "image": reference,
        "version": version,
        "result": result,
        "mode": MODE,
        "inputs": {"compose": ["stack"], "variables": {"LYTTLE_IMAGE": reference, "SECRET_MASTER_KEY": "key_1"}},
        "specs": {SERVICE: engine.spec_digest(spec(reference))},
        **changes,
    }
    return {**made, "inputs_digest": release.inputs_digest(made)}


def spec(reference: str) -> dict[str, Any]:
    return {"Name": SERVICE, "TaskTemplate": {"ContainerSpec": {"Image": reference}}, "Mode": {"Global": {}}}


def test_without_a_name_the_release_before_that_differs_and_succeeded_is_meant() -> None:
    history = [record(5, "2.0.0"), record(4, "2.0.0"), record(3, "1.1.0", "failed"), record(2, "1.0.0")]
    assert release.find(history, "")["number"] == 2
    assert release.find(history[:2], "") is None


def test_what_should_run_and_what_to_go_back_to_is_never_forgotten() -> None:
    def forgotten(history: list[dict[str, Any]], keep: int) -> list[int]:
        return [each["number"] for each in release.forgotten(history, keep)]

    failed = [record(number, "9.0.0", "failed") for number in range(60, 5, -1)]
    history = [*failed, record(5, "3.0.0"), record(4, "2.0.0"), record(3, "1.0.0")]
    assert forgotten(history, 50) == [10, 9, 8, 7, 6, 3]
    assert forgotten([record(2, "2.0.0"), record(1, "1.0.0")], 1) == []
    again = [record(4, "2.0.0"), record(3, "2.0.0"), record(2, "2.0.0"), record(1, "1.0.0")]
    assert forgotten(again, 0) == [2]


def test_a_release_that_ends_is_counted_by_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(number: int, result: str) -> dict[str, Any]:
        data = base64.b64encode(json.dumps(record(number, f"{number}.0.0", result)).encode()).decode()
        return {"ID": f"c{number}", "Spec": {"Name": f"lyttlenginx_release_{number}", "Data": data}}

    removed: list[str] = []
    swarm = SimpleNamespace(
        configs=lambda _: [config(3, "running"), config(2, "succeeded"), config(1, "succeeded")],
        label_config=lambda *_: None,
        remove_config=removed.append,
        stack_services=lambda _: [],
    )
    monkeypatch.setattr(release, "Engine", lambda _: swarm)
    told = modules.call(release, action="finish", number=3, result="succeeded", keep=1)
    assert told["release"]["result"] == "succeeded"
    assert removed == ["c1"]


def test_one_rollback_after_the_other_walks_back_and_never_to_what_was_left() -> None:
    history = [record(3, "3.0.0"), record(2, "2.0.0"), record(1, "1.0.0")]
    assert release.find(history, "")["number"] == 2
    history.insert(0, record(4, "2.0.0", back_to=2))
    assert release.find(history, "")["number"] == 1
    # The same release with other secrets, on one node only, or with a new holder of the ports is where it was.
    history.insert(0, record(5, "2.0.0", transient=True, inputs={"compose": ["both keys"]}))
    history.insert(0, record(6, "2.0.0"))
    assert release.find(history, "")["number"] == 1
    moved = record(7, "2.0.0", back_to=2)
    moved["inputs_digest"] = "another holder"
    assert release.find([moved, *history], "")["number"] == 1
    history.insert(0, record(7, "1.0.0", back_to=1))
    assert release.find(history, "") is None


def test_a_release_after_a_rollback_goes_back_to_what_ran_before_it() -> None:
    history = [record(5, "4.0.0"), record(4, "2.0.0", back_to="2"), record(3, "3.0.0"), record(2, "2.0.0")]
    history.append(record(1, "1.0.0"))
    assert release.find(history, "")["number"] == 4
    history.insert(0, record(6, "2.0.0", back_to=4))
    assert release.find(history, "")["number"] == 1
    # What was gone back to may be forgotten by now.
    assert release.find([r for r in history if r["number"] != 2], "")["number"] == 1


def test_a_version_may_be_a_number() -> None:
    history = [record(3, "3.0.0"), record(2, "20240601"), record(1, "3")]
    assert release.find(history, "20240601")["number"] == 2
    assert release.find(history, "3")["number"] == 1
    assert release.find(history, "2")["number"] == 2


def test_a_release_with_other_settings_is_another_release_one_with_other_secrets_is_not() -> None:
    inputs = record(1, "1.0.0")["inputs"]
    louder = {**inputs, "variables": {**inputs["variables"], "LOG_LEVEL": "DEBUG"}}
    rotated = {**inputs, "variables": {**inputs["variables"], "SECRET_MASTER_KEY": "key_2"}}
    history = [record(3, "1.0.0", inputs=rotated), record(2, "1.0.0"), record(1, "1.0.0", inputs=louder)]
    assert release.find(history, "")["number"] == 1
    assert not release.same(history[1], history[0])  # but the nodes have to get the new secret


def test_a_release_is_found_by_number_version_and_image() -> None:
    history = [record(12, "2.0.0"), record(11, "1.0.0", "failed"), record(10, "1.0.0")]
    assert release.find(history, "10")["version"] == "1.0.0"
    assert release.find(history, "1.0.0")["number"] == 10
    assert release.find(history, "registry.example/lyttle-ops:2.0.0")["number"] == 12
    assert release.find(history, "99") is None
    assert release.find(history, "3.0.0") is None


def test_what_a_change_of_the_master_key_needed_meanwhile_is_never_gone_back_to() -> None:
    history = [record(3, "2.0.0"), record(2, "1.0.0", transient=True), record(1, "0.9.0")]
    assert release.find(history, "")["number"] == 1
    assert release.find(history, "1.0.0") is None


def test_drift_tells_a_hand_from_a_deploy_that_was_killed() -> None:
    good, other = record(1, "1.0.0"), record(2, "2.0.0")
    assert release.drift([good], {SERVICE: spec(good["image"])}, SERVICE) == []
    by_hand = release.drift([good], {SERVICE: spec(other["image"])}, SERVICE)
    assert by_hand == [f"{SERVICE} runs {other['image']}, release 1 is {good['image']}: changed by hand"]
    killed = release.drift([{**other, "result": "interrupted"}, good], {SERVICE: spec(other["image"])}, SERVICE)
    assert killed[0].endswith("left by release 2, interrupted")
    scaled = {**spec(good["image"]), "Mode": {"Replicated": {"Replicas": 1}}}
    assert "settings" in release.drift([good], {SERVICE: scaled}, SERVICE)[0]
    assert "is gone" in release.drift([good], {}, SERVICE)[0]


def test_a_lock_is_dead_when_its_process_on_this_machine_is_gone_and_never_judged_from_another_one() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        held = {**lock.this_owner(), "pid": process.pid, "start_time": lock._start_time(process.pid)}
        assert {**json.loads(owner()), "pid": 0, "start_time": ""} == {**held, "pid": 0, "start_time": ""}
        assert not lock.is_dead(held)
        assert lock.is_dead({**held, "start_time": "another-boot:1"})  # the pid belongs to somebody else now
        process.kill()
    assert lock.is_dead(held)
    assert not lock.is_dead({**held, "host": "another-machine"})
    # A clone of this machine, and a container on it: their processes are not seen here.
    assert not lock.is_dead({**held, "owner": "somebody@its-clone"})
    assert not lock.is_dead({**held, "pid_namespace": "pid:[1]"})
    assert not lock.is_dead({**held, "pid": 0})


def test_a_lock_that_another_machine_holds_is_refused_until_it_expires_and_then_taken_over(tmp_path: Path) -> None:
    ann = {"owner": "ann@desk", "host": "another-machine", "pid": 7, "start_time": "boot:1"}
    options = {"name": "lyttlenginx_deploy_lock", "reason": "1.2.3", "takeover": None}
    configs: list[dict[str, Any]] = []
    with fake_engine(tmp_path / "s", {"/configs": configs}) as host:
        swarm = engine.Engine(host)
        held = lock.acquire(swarm, {**options, "owner": ann, "seconds": 600}, check_mode=False)
        ours = {**options, "owner": lock.this_owner(), "reason": "1.2.4", "seconds": 600}
        seen = lock.current(swarm, options["name"])
        assert not lock.is_dead(seen)
        with pytest.raises(engine.EngineError) as refused:
            lock.acquire(swarm, ours, check_mode=False)
        told = str(refused.value)
        assert f"Refused: ann@desk has the deploy lock since {held['started_at']} (1.2.3)" in told
        assert f"held until {held['expires_at']} unless it is refreshed" in told
        assert [each["ID"] for each in configs] == [held["id"]]
        engine.HeldLock(swarm, held["id"], -1).hold()  # nobody refreshed it in time
        taken = lock.acquire(swarm, ours, check_mode=False)
        assert taken["taken_over"]["owner"] == "ann@desk"
        assert lock.current(swarm, options["name"])["owner"] == ours["owner"]["owner"]
        with pytest.raises(engine.LockLost):
            engine.HeldLock(swarm, held["id"], 600).hold()  # ann's deploy stops there


def test_secrets_are_kept_root_only_and_written_when_they_change(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert secrets.write(str(folder), {"master_key": "one"}, check_mode=True)
    assert not folder.exists()
    assert secrets.write(str(folder), {"master_key": "one"}, check_mode=False)
    assert not secrets.write(str(folder), {"master_key": "one"}, check_mode=False)
    assert secrets.read(str(folder)) == {"master_key": "one"}
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(folder / "master_key").st_mode) == 0o600
    assert len(base64.b64decode(secrets._make("key"))) == 32


def test_the_name_of_a_secret_changes_with_its_content_and_nothing_else() -> None:
    name = secrets.swarm_name("lyttlenginx", "master_key", "one")
    assert name == secrets.swarm_name("lyttlenginx", "master_key", "one")
    assert name.startswith("lyttlenginx_master_key_")
    assert name != secrets.swarm_name("lyttlenginx", "master_key", "two")


@pytest.mark.parametrize(
    ("reference", "registry"),
    [
        ("registry.example:5000/team/lyttle-ops:1", "registry.example:5000"),
        ("localhost/lyttle-ops", "localhost"),
        ("team/lyttle-ops:1", ""),
        ("lyttle-ops:1", ""),
    ],
)
def test_an_image_names_its_registry(reference: str, registry: str) -> None:
    assert image.registry_of(reference) == registry


class _NoRegistry:
    """An engine with a history, whose registry answers nobody."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self._records = records

    def configs(self, prefix: str) -> list[dict[str, Any]]:
        data = [base64.b64encode(json.dumps(each).encode()).decode() for each in self._records]
        return [{"Spec": {"Name": f"{prefix}{number}", "Data": each}} for number, each in enumerate(data)]

    def call(self, *arguments: Any, **options: Any) -> Any:
        raise engine.EngineError("dial tcp: connection refused", 500)


def test_what_was_deployed_by_its_digest_needs_no_registry() -> None:
    good, failed = record(2, "1.0.0"), record(3, "2.0.0", "failed")
    without = _NoRegistry(good, failed)
    named, warning = image.in_registry(without, good["image"], "", "")
    assert named == good["image"]
    assert "connection refused" in warning
    for unknown in (failed["image"], "registry.example/lyttle-ops:1.0.0", good["image"].replace("1", "3")):
        with pytest.raises(engine.EngineError):
            image.in_registry(without, unknown, "", "")


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("registry.example:5000/lyttle-ops:1.2.3@sha256:" + "a" * 64, "1.2.3"),
        ("registry.example:5000/lyttle-ops@sha256:" + "a" * 64, "a" * 12),
        ("lyttle-ops", "latest"),
    ],
)
def test_an_image_names_its_version(reference: str, version: str) -> None:
    assert engine.image_version(reference) == version


def a_node(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "ID": f"id-{name}",
        "Description": {"Hostname": name},
        "Spec": {"Role": "worker", "Availability": "active", "Labels": {"lyttle.edge": "true"}},
        "Status": {"State": "ready", "Addr": "192.0.2.1"},
        **changes,
    }


def test_a_service_is_expected_on_nodes_that_are_up_and_meet_its_constraints() -> None:
    nodes = [
        a_node("n1", Status={"State": "ready", "Addr": "0.0.0.0"}, ManagerStatus={"Addr": "192.0.2.7:2377"}),
        a_node("n2", Spec={"Role": "worker", "Availability": "drain", "Labels": {"lyttle.edge": "true"}}),
        a_node("n3", Status={"State": "down", "Addr": "192.0.2.3"}),
        a_node("n4", Spec={"Role": "worker", "Availability": "active", "Labels": {}}),
        a_node("n5"),
    ]
    service = {"TaskTemplate": {"Placement": {"Constraints": ["node.labels.lyttle.edge == true"]}}}
    found = tasks.edge_nodes(nodes, service, {"n5": "198.51.100.5"})
    assert [(node["hostname"], node["address"]) for node in found] == [("n1", "192.0.2.7"), ("n5", "198.51.100.5")]
    service["TaskTemplate"]["Placement"]["Constraints"].append("node.hostname == n5")
    assert [node["hostname"] for node in tasks.edge_nodes(nodes, service, {})] == ["n5"]


def test_a_task_runs_the_service_as_it_is_when_only_the_placement_differs() -> None:
    template = {"ContainerSpec": {"Image": "a"}, "Placement": {"Constraints": ["x"]}, "Runtime": "container"}
    service = {"Spec": {"TaskTemplate": template}}
    task = {"Spec": {"ContainerSpec": {"Image": "a"}, "Placement": {}}}
    assert tasks.runs(task, service)
    assert not tasks.runs({"Spec": {**task["Spec"], "ForceUpdate": 1}}, service)


def test_a_task_that_ended_by_itself_counts_as_failed_one_that_swarm_replaced_does_not() -> None:
    states = {"t4": "failed", "t3": "shutdown", "t2": "complete", "t1": "failed"}
    seen = [{"ID": name, "Status": {"State": state}} for name, state in states.items()]
    assert [each["ID"] for each in tasks.failures(seen, ["t1"])] == ["t4", "t2"]


def test_what_a_service_runs_is_the_same_with_other_credentials_a_label_of_the_image_and_after_a_restart() -> None:
    def digest(force: int = 0, image: str = "i", **container: Any) -> str:
        template = {"ContainerSpec": {"Image": image, **container}, "ForceUpdate": force}
        return str(engine.spec_digest({"TaskTemplate": template, "Labels": {"com.docker.stack.image": f"{force}"}}))

    assert digest() == digest(force=1, PullOptions={"RegistryAuth": "x"})
    assert digest() != digest(image="j")
    assert digest() != digest(Env=["A=1"])


def test_a_deploy_tells_what_it_found_and_what_it_made(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = {SERVICE: spec("a")}
    swarm = SimpleNamespace(
        stack_services=lambda _: [{"Spec": each} for each in specs.values()],
        tasks=lambda name: [{"ID": f"{name}.1"}],
    )
    before, after, other = engine.spec_digest(spec("a")), engine.spec_digest(spec("b")), {**spec("c"), "Name": "new"}
    monkeypatch.setattr(stack, "Engine", lambda _: swarm)
    monkeypatch.setattr(stack, "deploy", lambda _: specs.update({SERVICE: spec("b"), "new": other}))
    told = modules.call(stack, stack="lyttlenginx", compose=[])
    assert told["services"] == [SERVICE, "new"]
    assert told["specs"] == {SERVICE: before}
    assert told["wanted"] == {SERVICE: after, "new": engine.spec_digest(other)}
    assert told["known_tasks"] == {SERVICE: [f"{SERVICE}.1"], "new": []}


def test_a_deploy_after_which_swarm_answers_no_more_counts_as_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def stack_services(_: str) -> list[dict[str, Any]]:
        if begun:
            raise engine.EngineError("no leader", 503)
        return []

    begun: list[bool] = []
    monkeypatch.setattr(stack, "Engine", lambda _: SimpleNamespace(stack_services=stack_services))
    monkeypatch.setattr(stack, "deploy", lambda _: begun.append(True))
    told = modules.call(stack, stack="lyttlenginx", compose=[])
    assert (told["failed"], told["changed"]) == (True, True)


class TakenOver:
    """An engine where somebody else has the lock by now; whatever would change something raises AttributeError."""

    def label_config(self, config_id: str, state: dict[str, Any]) -> None:
        raise engine.EngineError(f"config {config_id} not found", 404)

    def service(self, name: str) -> dict[str, Any] | None:
        if name.endswith("-next"):
            return None
        return {"Spec": spec("new"), "PreviousSpec": spec("old"), "Version": {"Index": 1}}


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (lock, {"action": "refresh", "id": "ours"}),
        (stack, {"stack": "lyttlenginx", "compose": []}),
        (mode, {"mode": {"kind": "replicated"}}),
        (rollout, {"action": "next"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whoever_lost_the_lock_says_so_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, module: Any, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "Engine", lambda _: TakenOver())
    told = modules.call(module, lock_id="ours", **options)
    assert told["failed"]
    assert told["lock_lost"]
    assert "was taken over by somebody else" in told["msg"]
    assert not told.get("changed")


def test_whoever_lost_the_lock_meanwhile_puts_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "Engine", lambda _: TakenOver())
    back = {SERVICE: engine.spec_digest(spec("old"))}
    options = {"docker_host": None, "service": SERVICE, "http_port": 80, "https_port": 443, "lock_id": "ours",
               "lock_seconds": 600, "known_tasks": [], "put_back": back}  # fmt: skip
    with pytest.raises(engine.LockLost):
        rollout.Rollout(options)._put_back()


def test_a_record_is_its_data_with_the_outcome_laid_over_it() -> None:
    data = base64.b64encode(json.dumps({"number": 3, "result": "running"}).encode()).decode()
    labels = {engine.STATE_LABEL: json.dumps({"result": "succeeded"})}
    config = {"Spec": {"Name": "lyttlenginx_release_3", "Data": data, "Labels": labels}}
    assert engine.config_data(config) == {"number": 3, "result": "succeeded"}


class TestMerge:
    """What managers keep after a change of secrets that was interrupted anywhere."""

    OLD: ClassVar = {"master_key": "k", "database_app_password": "old", "database_owner_password": "old"}
    NEW: ClassVar = {"database_app_password_new": "new", "database_owner_password_new": "new"}
    DONE: ClassVar = {
        "master_key": "k",
        "database_app_password": "new",
        "database_owner_password": "new",
        "database_app_login": "lyttle_app_b",
        "database_owner_login": "lyttle_owner_b",
    }

    def test_those_that_agree(self) -> None:
        assert secrets.merge([self.OLD, self.OLD]) == (self.OLD, [])
        assert secrets.merge([]) == ({}, [])

    def test_new_ones_were_made_on_one_manager(self) -> None:
        begun = {**self.OLD, **self.NEW}
        assert secrets.merge([self.OLD, begun, self.OLD]) == (begun, [])

    def test_killed_while_the_new_ones_became_what_is_kept(self) -> None:
        begun, done = {**self.OLD, **self.NEW}, {**self.DONE, **self.NEW}
        half = {**begun, "database_app_login": "lyttle_app_b", "database_app_password": "new"}
        logins = {"database_app_login": "lyttle_app", "database_owner_login": "lyttle_owner"}
        assert secrets.merge([done, begun]) == ({**begun, **logins}, [])
        assert secrets.merge([done, half, begun]) == ({**begun, **logins}, [])
        assert secrets.merge([done, done]) == (done, [])
        # The second change, back to the first log-ins.
        back = {**self.DONE, "database_app_password_new": "3", "database_owner_password_new": "3"}
        assert secrets.merge([{**back, **logins, "database_app_password": "3"}, back]) == (back, [])

    def test_a_reinstalled_manager_that_keeps_nothing_is_no_difference(self) -> None:
        begun = {**self.OLD, "master_key_new": "new"}
        assert secrets.merge([{**begun, "master_key": "new"}, begun, {}]) == (begun, [])
        assert secrets.merge([{}, self.DONE]) == (self.DONE, [])
        assert secrets.merge([{}, {}]) == ({}, [])

    def test_killed_while_new_ones_were_forgotten(self) -> None:
        assert secrets.merge([self.DONE, {**self.DONE, **self.NEW}]) == ({**self.DONE, **self.NEW}, [])

    def test_killed_while_the_new_master_key_became_the_key(self) -> None:
        both = {"master_key": "k", "master_key_new": "new"}
        assert secrets.merge([{**both, "master_key": "new"}, both]) == (both, [])
        assert secrets.merge([{"master_key": "new"}, {**both, "master_key": "new"}]) == (
            {"master_key": "new", "master_key_new": "new"},
            [],
        )

    @pytest.mark.parametrize(
        ("other", "name"),
        [
            ({**OLD, "master_key": "another"}, "master_key"),
            ({"master_key": "k"}, "database_app_password"),
            ({**OLD, "database_app_login": "lyttle_app_b"}, "database_app_login"),
            ({**OLD, **NEW, "database_app_password_new": "another"}, "database_app_password_new"),
        ],
    )
    def test_what_no_interrupted_change_explains_is_named(self, other: dict[str, str], name: str) -> None:
        given = {**self.OLD, **self.NEW} if name.endswith("_new") else self.OLD
        assert name in secrets.merge([given, other])[1]

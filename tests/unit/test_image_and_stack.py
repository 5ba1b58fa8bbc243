"""Dockerfile, stack and wheel agree with the code and with each other."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from lyttle_ops.node import healthcheck, node
from lyttle_ops.settings import PortsSettings, Settings

ROOT = Path(__file__).parents[2]
STACK = (ROOT / "docker-compose.swarm.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USER = 7443
# Secrets and files that only a rotation or a private CA needs; they come with a second compose file.
NOT_IN_THE_STACK = {"MASTER_KEY_PREVIOUS", "ACME_CA_FILE"}


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """The stack as `docker stack deploy` reads it with only the required variables set."""

    def value(found: re.Match[str]) -> str:
        name, operator, default = found.groups()
        assert operator, f"${{{name}}} has neither a default nor a message"
        if operator.endswith("?"):
            assert "-" not in default, "Docker takes what follows a hyphen for the variable's default"
            return f"the {name}"
        return default

    # Values only: Docker interpolates no comments and no keys.
    text = "\n".join(line for line in STACK.splitlines() if not line.lstrip().startswith("#"))
    text = re.sub(r"\$\{([A-Z_]+)(:?[-?])?([^}]*)\}", value, text)
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return float(match[1])


def test_the_stack_sets_every_setting_and_nothing_else(stack: dict[str, Any]) -> None:
    known = {name.upper() for name in Settings.model_fields}
    assert variables_of(stack, "lyttlenginx") == known - NOT_IN_THE_STACK
    assert variables_of(stack, "ports") == {name.upper() for name in PortsSettings.model_fields}


def variables_of(stack: dict[str, Any], service: str) -> set[str]:
    known = {name.upper() for name in Settings.model_fields}
    names = stack["services"][service]["environment"]
    return {name if name in known else name.removesuffix("_FILE") for name in names}


def test_every_variable_of_the_stack_stands_in_the_example_environment_with_its_default() -> None:
    text = "\n".join(line for line in STACK.splitlines() if not line.lstrip().startswith("#"))
    shown = example()
    variables = re.findall(r"\$\{([A-Z_]+)(:?[-?])?([^}]*)\}", text)
    assert {name for name, _, _ in variables} <= shown.keys()
    # An empty default is the node's own, and the shared folder's is another one in the stack.
    defaults = {name: value for name, operator, value in variables if operator == ":-" and value}
    assert {name: shown[name] for name in defaults} == defaults
    # What may hold characters of the shell is a secret.
    assert not {name for name, _, _ in variables} & {name.upper() for name in secrets_of_a_node()}


def test_the_example_environment_means_the_same_to_docker_and_to_the_shell(tmp_path: Path) -> None:
    """`docker run --env-file` takes each value as it stands; the stack's file is sourced."""
    values = {
        **example(),
        "LYTTLE_IMAGE": "registry.example.com:5000/lyttle-ops:0.1.0@sha256:0a",
        "ACME_EMAIL": "o+x@y.example",
    }
    file = tmp_path / "stack.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    shown = f'{sys.executable} -c "import json, os; print(json.dumps(dict(os.environ)))"'
    done = subprocess.run(
        ["sh", "-euc", f"set -a; . ./stack.env; set +a; {shown}"], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert done.stderr == ""
    sourced = json.loads(done.stdout)
    assert {name: sourced.get(name) for name in values} == values


def example() -> dict[str, str]:
    """Every variable of .env.example with the value it shows, commented or not."""
    return dict(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def secrets_of_a_node() -> set[str]:
    return {name for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)}


def test_secrets_are_files_of_the_nodes_user_and_never_in_an_environment(stack: dict[str, Any]) -> None:
    service = stack["services"]["lyttlenginx"]
    secrets = {name.upper() for name in secrets_of_a_node()} - NOT_IN_THE_STACK
    for name in secrets:
        assert name not in service["environment"]
        assert service["environment"][f"{name}_FILE"] == f"/run/secrets/{name.lower()}"
    assert {mount["target"].upper() for mount in service["secrets"]} == secrets == {k.upper() for k in stack["secrets"]}
    for mount in service["secrets"]:
        assert (mount["uid"], mount["gid"], mount["mode"]) == (str(USER), str(USER), 0o400)
    assert "secrets" not in stack["services"]["ports"]


def test_a_task_has_longer_to_end_than_the_node_takes(stack: dict[str, Any]) -> None:
    # Leadership, then requests in flight, then children that need force.
    assert seconds(stack["services"]["lyttlenginx"]["stop_grace_period"]) > 3 + node.GRACE + 2 + 5


@pytest.mark.parametrize("service", ["lyttlenginx", "ports"])
def test_updates_start_the_new_task_first_one_node_at_a_time_and_go_back_on_failure(
    stack: dict[str, Any], service: str
) -> None:
    deploy = stack["services"][service]["deploy"]
    assert deploy["mode"] == "global"
    assert deploy["placement"]["constraints"] == ["node.labels.lyttle.edge == true"]
    assert deploy["update_config"]["failure_action"] == "rollback"
    for config in (deploy["update_config"], deploy["rollback_config"]):
        assert (config["parallelism"], config["order"], config["max_failure_ratio"]) == (1, "start-first", 0)
        assert seconds(config["delay"]) == 20
    assert deploy["restart_policy"]["condition"] == "any"
    assert seconds(deploy["restart_policy"]["delay"]) >= 5
    for kind in ("limits", "reservations"):
        assert set(deploy["resources"][kind]) == {"cpus", "memory"}
    assert stack["services"][service]["logging"]["options"] == {"max-size": "20m", "max-file": "5"}


def test_no_service_has_more_rights_than_it_needs(stack: dict[str, Any]) -> None:
    node_service, ports = stack["services"]["lyttlenginx"], stack["services"]["ports"]
    for service in (node_service, ports):
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert "ports" not in service  # nothing is published: the holder binds
    assert "user" not in node_service
    assert "cap_add" not in node_service
    assert ports["cap_add"] == ["NET_BIND_SERVICE", "SETUID", "SETGID"]
    assert "USER lyttle" in DOCKERFILE
    assert f"--uid {USER} --gid {USER}" in DOCKERFILE


def test_folders_of_the_settings_are_mounted_as_they_must_be(stack: dict[str, Any]) -> None:
    service = stack["services"]["lyttlenginx"]
    mounts = {mount["target"]: mount for mount in service["volumes"]}
    environment = service["environment"]
    assert mounts[environment["STATE_DIR"]]["type"] == "volume"
    assert mounts[environment["RUN_DIR"]]["type"] == "tmpfs"
    socket_folder = str(Path(environment["PORTS_SOCKET"]).parent)
    assert mounts[socket_folder]["source"] == "ports"
    holder = {mount["target"]: mount for mount in stack["services"]["ports"]["volumes"]}
    assert holder[socket_folder] == mounts[socket_folder]
    # The folder above the NFS mount: with it bound directly, no task would start while NFS is away.
    above = str(Path(environment["SHARED_DIR"]).parent)
    assert mounts[above]["bind"] == {"propagation": "rslave"}
    for folder in (environment["STATE_DIR"], environment["RUN_DIR"], socket_folder):
        assert folder in DOCKERFILE


def test_image_and_stack_check_health_alike_and_leave_the_check_its_time(stack: dict[str, Any]) -> None:
    check = stack["services"]["lyttlenginx"]["healthcheck"]
    words = re.search(r"^HEALTHCHECK (.*) CMD \[(.*)\]$", DOCKERFILE, re.MULTILINE)
    assert words
    assert words[1].split() == [
        f"--interval={check['interval'].removeprefix('${HEALTH_INTERVAL:-').removesuffix('}')}",
        f"--timeout={check['timeout']}",
        f"--start-period={check['start_period']}",
        f"--retries={check['retries']}",
    ]
    assert check["test"] == ["CMD", words[2].strip('"')]
    script = (ROOT / "healthcheck.sh").read_text()
    bound = re.search(r"timeout -k (\S+) (\S+) ", script)
    assert bound
    assert 2 * healthcheck.PATIENCE < 2 < float(bound[2])
    assert float(bound[1]) + float(bound[2]) < seconds(check["timeout"])


def test_the_image_says_the_projects_version() -> None:
    assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [PROJECT["version"]]


def test_the_wheel_holds_both_packages_and_the_playbooks(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    for package in ("lyttle_ops", "webapi"):
        kept = {".py", ".sql", ".j2", ".mako", ".js", ".css", ".html", ".svg"}
        files = [path for path in (ROOT / package).rglob("*") if path.suffix in kept]
        assert {str(path.relative_to(ROOT)) for path in files} <= held
    for name in (
        "docker-compose.swarm.yml",
        "inventory.example.ini",
        "playbooks/site.yml",
        "roles/stack/tasks/main.yml",
    ):
        assert f"lyttle_ops/ansible/{name}" in held
    assert not [name for name in held if "__pycache__" in name or name.startswith("tests")]

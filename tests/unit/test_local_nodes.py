"""A node's environment and what it says: further settings are checked before a start, failing checks are named."""

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lyttle_ops.errors import ConfigurationError
from lyttle_ops.local import credentials, nodes
from lyttle_ops.local.layout import Layout
from lyttle_ops.settings import load


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"FOO": "bar"}, "FOO: there is no such setting; the settings are HTTP_LISTEN, HTTPS_LISTEN, "),
        ({"LOG_LEVL": "INFO"}, "did you mean LOG_LEVEL?"),
        ({"ACME_CA_FILE_FILE": "/x"}, "did you mean ACME_CA_FILE?"),
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL: Input should be 'DEBUG'"),
        ({"ACME_EMAIL_FILE": "/nonexistent"}, "ACME_EMAIL_FILE: /nonexistent cannot be read"),
        ({"MASTER_KEY": "short"}, "MASTER_KEY: accepted: 32 random bytes"),
    ],
)
def test_a_setting_that_no_node_would_accept_is_refused_with_what_is(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        nodes.check_settings(settings)
    assert said in str(refused.value)


def test_settings_are_accepted_by_name_and_from_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(base64.b64encode(bytes(32)).decode())
    nodes.check_settings({"LOG_LEVEL": "DEBUG", "MASTER_KEY_FILE": str(key), "ACME_CA_FILE": "/x"})
    nodes.check_settings({})


def test_a_further_setting_replaces_the_file_that_the_start_made_for_it(tmp_path: Path) -> None:
    made = credentials.ensure(tmp_path)
    made.write_database_url("postgresql://lyttle@127.77.0.250/lyttle")
    environment = nodes.environment(
        Layout().node(1),
        made,
        state_folder=tmp_path,
        run_folder=tmp_path,
        acme_directory="https://127.0.0.1/dir",
        acme_ca_file=tmp_path / "root.pem",
        settings={"DATABASE_URL": "postgresql://other/x"},
    )
    assert load(environment).database_url.get_secret_value() == "postgresql://other/x"


def _status(folder: Path, **changes: Any) -> nodes.NodeStatus:
    status = {
        "pid": os.getpid(),
        "written_at": time.time(),
        "leader": False,
        "state": "ready",
        "instance_id": "x",
        "failure": None,
        "nginx": {"running": True, "release": None},
        "checks": {"nginx": {"ok": True, "message": "fine"}, "database": {"ok": False, "message": "it is away"}},
        **changes,
    }
    (folder / "x").mkdir(exist_ok=True)
    (folder / "x" / "status.json").write_text(json.dumps(status))
    return nodes.read_status(folder, os.getpid())


def test_a_status_file_names_the_failing_checks(tmp_path: Path) -> None:
    assert _status(tmp_path).problems == (("database", "it is away"),)
    failed = _status(tmp_path, state="failed", failure="the reason", checks={})
    assert failed.problems == (("node", "the reason"),)
    silent = _status(tmp_path, written_at=time.time() - 30)
    assert not silent.ready
    assert "30 s old" in silent.problems[0][1]

"""Settings: each problem names its variable and what is accepted; secrets never show."""

import base64
from pathlib import Path

import pytest

from lyttle_ops.errors import ConfigurationError
from lyttle_ops.settings import Settings, explain, load

KEY = base64.b64encode(bytes(32)).decode()
GOOD = {"DATABASE_URL": "postgresql://u:s3cret@db:5432/x", "MASTER_KEY": KEY}


def problems(environment: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(environment)
    return str(caught.value)


def test_missing_ones_are_all_named_at_once() -> None:
    text = problems({})
    assert "DATABASE_URL: is not set (or DATABASE_URL_FILE)" in text
    assert "MASTER_KEY: is not set" in text
    assert "openssl rand -base64 32" in text


def test_a_setting_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(GOOD["DATABASE_URL"] + "\n")
    settings = load({"DATABASE_URL_FILE": str(file), "MASTER_KEY": KEY})
    assert settings.database_url.get_secret_value() == GOOD["DATABASE_URL"]


def test_an_unreadable_file_is_named_once(tmp_path: Path) -> None:
    text = problems({**GOOD, "MASTER_KEY": "", "MASTER_KEY_FILE": str(tmp_path / "none")})
    assert text == f"MASTER_KEY_FILE: {tmp_path}/none cannot be read: No such file or directory"


def test_both_forms_at_once_are_refused() -> None:
    assert "keep one" in problems({**GOOD, "MASTER_KEY_FILE": "/x"})


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("DATABASE_URL", "mysql://u:s3cret@db/x", "postgresql://user:password@host:5432/name"),
        ("DATABASE_URL", "postgresql://u:s3cret@db:port/x y", "postgresql://user:password@host:5432/name"),
        ("MASTER_KEY", "c2hvcnQ=", "32 random bytes in base64"),
        ("HTTP_LISTEN", "80", "0.0.0.0:80"),
        ("HTTPS_LISTEN", "::1:443", "[::]:80"),
        ("API_LISTEN", "localhost:3003", "0.0.0.0:80"),
        ("TRUSTED_LOAD_BALANCERS", "10.0.0.1/8", "CIDR"),
        ("NAME_SERVERS", "dns.example", "10.0.0.2:53"),
        ("ACME_DIRECTORY_URL", "letsencrypt", "https://ca.example/directory"),
        ("PROXY_PROTOCOL", "perhaps", "boolean"),
        ("ACME_DIRECTORY_URL", "http://ca.example/dir", "http:// is refused, since ACME needs HTTPS"),
        ("ACME_DIRECTORY_URL", "https://[ca.example/dir", "https://ca.example/directory"),
        ("STATE_DIR", "state", "an absolute one"),
        ("RUN_DIR", "./run", "an absolute one"),
        ("ADMIN_USERNAME", "b ob;x", "letters, digits and . _ @ + -"),
        ("ADMIN_PASSWORD", "short", "at least 8 characters"),
        ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO'"),
        ("NODE_NAME", "a/b", "pattern"),
        ("ACCESS_TOKEN_LIFETIME", "5", "60"),
    ],
)
def test_a_wrong_value_names_the_variable_and_what_is_accepted(variable: str, value: str, accepted: str) -> None:
    text = problems({**GOOD, variable: value})
    assert text.startswith(f"{variable}: ")
    assert accepted in text
    assert "s3cret" not in text


def test_secrets_are_masked_and_sources_told() -> None:
    shown = {source.variable: source for source in explain(GOOD)}
    assert (shown["DATABASE_URL"].shown, shown["DATABASE_URL"].origin) == ("***", "environment")
    assert (shown["LOG_FORMAT"].shown, shown["LOG_FORMAT"].origin) == ("auto", "default")
    assert "s3cret" not in repr(load(GOOD))


def test_every_setting_stands_in_the_example_environment() -> None:
    text = (Path(__file__).parents[2] / ".env.example").read_text()
    assert [name.upper() for name in Settings.model_fields if f"{name.upper()}=" not in text] == []

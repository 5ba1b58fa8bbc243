"""Settings: the only reader of the environment.

Each setting is one environment variable, and NAME_FILE names a file that holds the value instead (Docker
secrets). `load` raises ConfigurationError naming the variable, what is wrong with it and what is accepted;
secrets are masked wherever settings are shown.
"""

import base64
import binascii
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from lyttle_ops.errors import ConfigurationError


def _host_name() -> str:
    return socket.gethostname()


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or _host_name()
    except OSError:
        return _host_name()


def _name_servers() -> tuple[str, ...]:
    """The machine's name servers (resolv.conf(5)), for NGINX, which resolves names by itself."""
    servers = []
    try:
        for line in Path("/etc/resolv.conf").read_text().splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                address = ipaddress.ip_address(words[1].split("%")[0])
                servers.append(f"[{address}]" if address.version == 6 else str(address))
    except (OSError, ValueError):
        pass
    return tuple(servers) or ("127.0.0.53",)


def _everywhere(port: int) -> tuple[str, ...]:
    """All addresses of this machine; without IPv6 in the kernel NGINX would refuse to start on [::]."""
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError:
        return (f"0.0.0.0:{port}",)
    return f"0.0.0.0:{port}", f"[::]:{port}"


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _database_url(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    try:
        conninfo_to_dict(text)
    except Exception:
        raise ValueError("cannot be parsed; accepted: postgresql://user:password@host:5432/name") from None
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("accepted: postgresql://user:password@host:5432/name")
    return value


def _master_key(value: SecretStr) -> SecretStr:
    try:
        raw = base64.b64decode(value.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise ValueError("accepted: 32 random bytes in base64, as `openssl rand -base64 32` prints them")
    return value


def _address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    try:
        literal = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        version = ipaddress.ip_address(literal).version
        if not separator or not 0 < int(port) < 65536 or (version == 6) != host.startswith("["):
            raise ValueError
    except ValueError:
        raise ValueError(f"{value!r} is not an address; accepted: 0.0.0.0:80 or [::]:80") from None
    return value


def _addresses(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("at least one address is needed, as 0.0.0.0:80")
    return tuple(_address(value) for value in values)


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(value)) for value in values)
    except ValueError as exc:
        raise ValueError(f"{exc}; accepted: networks in CIDR form, as 10.0.0.0/8") from None


def _directory_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if good and parts.scheme == "http":
        # RFC 8555 section 6.1: ACME runs over HTTPS only.
        raise ValueError("http:// is refused, since ACME needs HTTPS; accepted: https://ca.example/directory")
    if not good or parts.scheme != "https":
        raise ValueError("accepted: a URL as https://ca.example/directory")
    return value


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        # The node, NGINX and gunicorn would each read it from where they stand.
        raise ValueError(f"{str(value)!r} is a relative path; accepted: an absolute one, as /app/state")
    return value


def _socket_path(value: Path) -> Path:
    if len(os.fsencode(_absolute(value))) > 100:  # unix(7): 107 bytes, and the holder adds a few
        raise ValueError(f"{str(value)!r} is too long for a unix socket; accepted: at most 100 bytes")
    return value


def _admin_password(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 8:
        raise ValueError("is too short; accepted: at least 8 characters")
    return value


def acceptable_username(value: str) -> str:
    """The name, when a new user may have it. Raises ValueError saying what is accepted."""
    if not _USERNAME.fullmatch(value):
        shown = repr(value if len(value) <= 80 else value[:77] + "…")
        raise ValueError(
            f"{shown} is no user name; accepted: 1 to 64 letters, digits and . _ @ + -, a letter or digit first"
        )
    return value


def _name_server(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        host = value
        if value.startswith("["):
            host, _, port = value[1:].partition("]")
            port = port.removeprefix(":")
        else:
            host, _, port = value.partition(":")
        try:
            ipaddress.ip_address(host)
            if port and not 0 < int(port) < 65536:
                raise ValueError
        except ValueError:
            raise ValueError(f"{value!r} is not a name server; accepted: 10.0.0.2, 10.0.0.2:53, [fd00::2]:53") from None
    return values


_USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
DatabaseURL = Annotated[SecretStr, AfterValidator(_database_url)]
Listen = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_addresses)]
Networks = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_networks)]


class PortsSettings(BaseModel):
    """What the holder of the ports reads; a node reads the same and more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    http_listen: Listen = Field(
        default_factory=lambda: _everywhere(80),
        description="addresses for HTTP, comma separated; default: 0.0.0.0:80, and [::]:80 where the kernel has IPv6",
    )
    https_listen: Listen = Field(
        default_factory=lambda: _everywhere(443),
        description="addresses for HTTPS, comma separated; default: 0.0.0.0:443, and [::]:443 where there is IPv6",
    )
    api_listen: Annotated[str, AfterValidator(_address)] = Field(
        "127.0.0.1:3003", description="address of the control API"
    )
    ports_socket: Annotated[Path, AfterValidator(_socket_path)] = Field(
        Path("/run/lyttle-ports/ports.sock"), description="where the holder of the ports lends them to the node"
    )
    log_format: Literal["auto", "text", "json"] = Field("auto", description="auto: text on a terminal, else json")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level that is logged")


class Settings(PortsSettings):
    """Every setting of a node; a field FOO_BAR is read from FOO_BAR or the file named by FOO_BAR_FILE."""

    database_url: DatabaseURL = Field(description="PostgreSQL, as postgresql://user:password@host:5432/name")
    database_migration_url: DatabaseURL | None = Field(
        None, description="the schema owner's URL, used for migrations only; empty: DATABASE_URL migrates"
    )
    master_key: Annotated[SecretStr, AfterValidator(_master_key)] = Field(
        description="encrypts private keys and signs tokens: 32 random bytes in base64 (openssl rand -base64 32)"
    )
    master_key_previous: Annotated[SecretStr, AfterValidator(_master_key)] | None = Field(
        None, description="the key that MASTER_KEY replaces, until `lyttle-ops rotate-master-key` has run"
    )
    node_name: str = Field(
        default_factory=_host_name,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,62})$",
        description="name of this node in the cluster; default: the host's name",
    )
    node_machine_id: str = Field(
        default_factory=_machine_id,
        min_length=1,
        description="identity of the machine (Swarm node id); default: /etc/machine-id",
    )
    task_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
        description="identity of this container's task (Swarm: {{.Task.ID}}), told to whoever asks; optional",
    )
    listen: Literal["held", "bind"] = Field(
        "bind", description="held: take the listening sockets from the holder of the ports; bind: open them here"
    )
    state_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        Path("/app/state"), description="small durable state: restart.count, last known configuration"
    )
    run_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        Path("/run/lyttle-ops"),
        description="sockets, NGINX releases and private keys in clear; must be a tmpfs",
    )
    shared_dir: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        None, description="folder that all nodes share (NFS), for a copy of the cluster's state; may be away or hang"
    )
    trusted_load_balancers: Networks = Field(
        (),
        description="networks whose X-Forwarded-For or PROXY header is believed, comma separated; default: none",
    )
    proxy_protocol: bool = Field(False, description="true: HTTP and HTTPS listeners expect the PROXY protocol")
    name_servers: Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_name_server)] = Field(
        default_factory=_name_servers,
        description="name servers for upstream names; default: /etc/resolv.conf",
    )
    access_log: bool = Field(True, description="true: one line a request on standard output")
    acme_directory_url: Annotated[str, AfterValidator(_directory_url)] = Field(
        "https://acme-v02.api.letsencrypt.org/directory", description="directory of the ACME CA, over https"
    )
    acme_ca_file: Path | None = Field(
        None, description="PEM file of the root that signs the ACME server's own certificate"
    )
    acme_email: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+$", description="contact for the CA; optional")
    admin_username: Annotated[str, AfterValidator(acceptable_username)] = Field(
        "admin", description="name of the first administrator"
    )
    admin_password: Annotated[SecretStr, AfterValidator(_admin_password)] | None = Field(
        None, description="its password, at least 8 characters; default: generated once into STATE_DIR/admin-password"
    )
    access_token_lifetime: int = Field(900, ge=60, le=86400, description="seconds an access token is good for")
    refresh_token_lifetime: int = Field(
        7 * 86400, ge=300, le=90 * 86400, description="seconds a log-in lasts without a new password"
    )

    def master_keys(self) -> tuple[bytes, bytes | None]:
        """MASTER_KEY and MASTER_KEY_PREVIOUS as bytes, for Keyring."""
        previous = self.master_key_previous
        return (
            base64.b64decode(self.master_key.get_secret_value()),
            base64.b64decode(previous.get_secret_value()) if previous else None,
        )


_S = TypeVar("_S", bound=PortsSettings)


@dataclass(frozen=True)
class Source:
    """Where one setting's value came from."""

    variable: str
    origin: str  # "default", "environment" or "file PATH"
    shown: str  # the value for people; *** for secrets
    description: str


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environment` (default: the process's). Raises ConfigurationError."""
    return _read(Settings, os.environ if environment is None else environment)[0]


def load_ports(environment: Mapping[str, str] | None = None) -> PortsSettings:
    """The few settings of the holder of the ports. Raises ConfigurationError."""
    return _read(PortsSettings, os.environ if environment is None else environment)[0]


def explain(environment: Mapping[str, str] | None = None) -> list[Source]:
    """Every setting with its source, secrets masked. Raises ConfigurationError."""
    settings, origins = _read(Settings, os.environ if environment is None else environment)
    return [
        Source(
            name.upper(),
            origins.get(name, "default"),
            _shown(getattr(settings, name)),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "***" if isinstance(value, SecretStr) else str(value)


def _read(kind: type[_S], environment: Mapping[str, str]) -> tuple[_S, dict[str, str]]:
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for name in kind.model_fields:
        variable = name.upper()
        direct, path = environment.get(variable, ""), environment.get(f"{variable}_FILE", "")
        if variable.endswith("_FILE"):  # ACME_CA_FILE is itself a path
            path = ""
        if direct and path:
            problems.append(f"{variable}: both {variable} and {variable}_FILE are set; keep one")
        elif path:
            try:
                values[name] = Path(path).read_text("utf-8").strip()
                origins[name] = f"file {path}"
            except (OSError, UnicodeDecodeError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
                problems.append(f"{variable}_FILE: {path} cannot be read: {reason}")
        elif direct:
            values[name] = direct
            origins[name] = "environment"
    try:
        settings = kind.model_validate(values)
    except ValidationError as exc:
        reported = {problem.split(":")[0].removesuffix("_FILE") for problem in problems}
        problems += [text for text in map(_problem, exc.errors()) if text.split(":")[0] not in reported]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings, origins


def _problem(error: Any) -> str:
    name = str(error["loc"][0])
    variable = name.upper()
    description = Settings.model_fields[name].description if name in Settings.model_fields else ""
    if error["type"] == "missing":
        return f"{variable}: is not set (or {variable}_FILE): {description}"
    reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else str(error["msg"])
    return f"{variable}: {reason} ({description})"

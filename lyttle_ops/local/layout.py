"""Where everything of a local cluster listens: node i at .i of a loopback /24, the services at .250.

All ports lie below 32768, where the kernel never picks a client's port, so an address that is free at the
start cannot be taken by chance.
"""

import re
from dataclasses import dataclass

from lyttle_ops.errors import LyttleOpsError

DEFAULT_BASE = "127.77.0"
MOST_NODES = 200
_BASE = re.compile(r"127\.(\d{1,3})\.(\d{1,3})")


class LayoutInvalid(LyttleOpsError):
    """The addresses asked for cannot be used."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One listening socket: `purpose` is for people."""

    host: str
    port: int
    purpose: str
    udp: bool = False  # UDP as well as TCP


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """One node's addresses."""

    name: str  # n1, n2, …
    host: str
    http_port: int
    https_port: int
    api_port: int

    @property
    def api(self) -> str:
        return f"http://{self.host}:{self.api_port}"

    @property
    def http(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def https(self) -> str:
        return f"https://{self.host}:{self.https_port}"

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(self.host, self.http_port, f"HTTP of {self.name}"),
            Endpoint(self.host, self.https_port, f"HTTPS of {self.name}"),
            Endpoint(self.host, self.api_port, f"API of {self.name}"),
        ]


@dataclass(frozen=True, slots=True)
class Layout:
    """A cluster's addresses. Raises LayoutInvalid.

    `base` is three octets inside 127.0.0.0/8; `port_offset` is added to every port, for machines where
    something already holds one of them on all addresses.
    """

    base: str = DEFAULT_BASE
    nodes: int = 3
    port_offset: int = 0

    def __post_init__(self) -> None:
        match = _BASE.fullmatch(self.base)
        if not match or any(int(octet) > 255 for octet in match.groups()):
            raise LayoutInvalid(f"{self.base!r} is no base address; accepted: three octets of 127.0.0.0/8, as 127.78.0")
        if not 1 <= self.nodes <= MOST_NODES:
            raise LayoutInvalid(f"{self.nodes} nodes are not possible; accepted: 1 to {MOST_NODES}")
        if not 0 <= self.port_offset <= 16000:
            raise LayoutInvalid(f"port offset {self.port_offset} is not possible; accepted: 0 to 16000")

    def options(self) -> list[str]:
        """The options of `local up` that give this layout again; none for the default."""
        asked = {"--nodes": self.nodes, "--base": self.base, "--port-offset": self.port_offset}
        usual = {"--nodes": 3, "--base": DEFAULT_BASE, "--port-offset": 0}
        return [word for name, value in asked.items() if value != usual[name] for word in (name, str(value))]

    @property
    def services(self) -> str:
        """The address of PostgreSQL, CA, DNS and the demo upstream."""
        return f"{self.base}.250"

    @property
    def database_port(self) -> int:
        return 15432 + self.port_offset

    @property
    def ca_port(self) -> int:
        return 14000 + self.port_offset

    @property
    def ca_management_port(self) -> int:
        return 15000 + self.port_offset

    @property
    def dns_port(self) -> int:
        return 8053 + self.port_offset

    @property
    def upstream_port(self) -> int:
        return 9000 + self.port_offset

    @property
    def upstream(self) -> str:
        return f"http://{self.services}:{self.upstream_port}"

    @property
    def http_port(self) -> int:
        """Every node's HTTP port: where the CA looks for HTTP-01 answers."""
        return 8080 + self.port_offset

    def node(self, number: int) -> NodeLayout:
        return NodeLayout(
            name=f"n{number}",
            host=f"{self.base}.{number}",
            http_port=self.http_port,
            https_port=8443 + self.port_offset,
            api_port=3003 + self.port_offset,
        )

    def all_nodes(self) -> list[NodeLayout]:
        return [self.node(number) for number in range(1, self.nodes + 1)]

    def node_named(self, name: str) -> NodeLayout:
        """Raises LayoutInvalid naming the nodes there are."""
        for node in self.all_nodes():
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.all_nodes())
        raise LayoutInvalid(f"there is no node {name!r}; the nodes are {names}")

    def service_endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(self.services, self.database_port, "PostgreSQL"),
            Endpoint(self.services, self.ca_port, "the CA"),
            Endpoint(self.services, self.ca_management_port, "the CA's management"),
            Endpoint(self.services, self.dns_port, "the CA's DNS", udp=True),
            Endpoint(self.services, self.upstream_port, "the demo upstream"),
        ]

    def endpoints(self) -> list[Endpoint]:
        """Every listening socket of the cluster."""
        return self.service_endpoints() + [e for node in self.all_nodes() for e in node.endpoints()]

"""A lab's network on this machine: a bridge, a tap for each host, and address translation to the outside.

Devices are named after the lab's identity and the rules carry it as a comment, so everything of a lab is found
again by what the kernel says, also when the program that made it was killed. IPv4 subnets come from 198.18.0.0/15
(RFC 2544, set aside for tests): neither Docker's pools nor Swarm's overlay networks use them.
"""

import hashlib
import ipaddress
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.lab import shell

_POOL = ipaddress.ip_network("198.18.0.0/15")
_FIRST_HOST = 11
_CLOSED, _FORWARDING = "0", "3"  # states of a bridge's port
# Held while a subnet is chosen and taken, so that two labs do not choose the same.
LOCK = Path("/run/lock/lyttle-lab")


class NoSubnet(RuntimeError):
    """No subnet for the lab is free on this machine."""


def free_subnet(name: str) -> str:
    """A /24 for the lab `name`: derived from the name, the next one when this machine has a route there already."""
    subnets = list(_POOL.subnets(new_prefix=24))
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:2]) % len(subnets)
    taken = _routed()
    for subnet in subnets[start:] + subnets[:start]:
        if not any(subnet.overlaps(network) for network in taken):
            return str(subnet)
    raise NoSubnet(f"every subnet of {_POOL} is in use on this machine")


def is_taken(subnet: str) -> bool:
    """Whether this machine has a route into `subnet`."""
    return any(ipaddress.ip_network(subnet).overlaps(network) for network in _routed())


@dataclass(frozen=True, slots=True)
class Network:
    """Names and addresses of a lab; `identity` is files.identity of its name."""

    identity: str
    subnet: str

    @property
    def bridge(self) -> str:
        return f"ly{self.identity}"

    @property
    def namespace(self) -> str:
        """Network namespace of the engine that builds images."""
        return self.bridge

    @property
    def gateway(self) -> str:
        """This machine on the bridge: CA, DNS and registry listen here, and a test's requests come from here."""
        return self._address(1)

    @property
    def client(self) -> str:
        """A second address of this machine on the bridge, for clients that are not the gateway."""
        return self._address(2)

    @property
    def engine(self) -> str:
        """Address of the engine that builds images."""
        return self._address(3)

    def host(self, index: int) -> str:
        """IPv4 address of the host `index` (from 0)."""
        return self._address(_FIRST_HOST + index)

    def host6(self, index: int) -> str:
        """IPv6 address of the host `index`; unique local, reachable on the bridge only."""
        return f"{self._prefix6}::{_FIRST_HOST + index}"

    @property
    def gateway6(self) -> str:
        return f"{self._prefix6}::1"

    def tap(self, index: int) -> str:
        return f"{self.bridge}-{index + 1}"

    def mac(self, index: int) -> str:
        """Fixed, so that a host that comes back is the same for its neighbours' caches."""
        digits = self.identity
        return f"02:{digits[0:2]}:{digits[2:4]}:{digits[4:6]}:00:{index + 1:02x}"

    def up(self, hosts: int) -> None:
        """Make the bridge, a tap for each of `hosts`, the engine's namespace and the rules. Raises CommandFailed."""
        size = str(mtu())
        _ip("link", "add", self.bridge, "mtu", size, "type", "bridge")
        _ip("address", "add", f"{self.gateway}/24", "dev", self.bridge)
        _ip("address", "add", f"{self.client}/24", "dev", self.bridge)
        if Path("/proc/sys/net/ipv6").exists():
            _ip("address", "add", f"{self.gateway6}/64", "dev", self.bridge, "nodad")
        _ip("link", "set", self.bridge, "up")
        for index in range(hosts):
            tap = self.tap(index)
            _ip("tuntap", "add", "dev", tap, "mode", "tap")
            _ip("link", "set", tap, "mtu", size, "master", self.bridge, "up")
        inside = f"{self.bridge}-e1"
        _ip("netns", "add", self.namespace)
        _ip("link", "add", f"{self.bridge}-e", "mtu", size, "type", "veth", "peer", "name", inside, "mtu", size)
        _ip("link", "set", inside, "netns", self.namespace)
        _ip("link", "set", f"{self.bridge}-e", "master", self.bridge, "up")
        _ip("-n", self.namespace, "address", "add", f"{self.engine}/24", "dev", inside)
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        _ip("-n", self.namespace, "link", "set", inside, "up")
        _ip("-n", self.namespace, "route", "add", "default", "via", self.gateway)
        comment = ["-m", "comment", "--comment", self._comment]
        outside = ["-s", self.subnet, "!", "-d", self.subnet]
        _iptables("-t", "nat", "-A", "POSTROUTING", *outside, *comment, "-j", "MASQUERADE")
        # Before the rules of whoever drops forwarded packets by default, as Docker does.
        _iptables("-I", "FORWARD", "-i", self.bridge, *comment, "-j", "ACCEPT")
        _iptables("-I", "FORWARD", "-o", self.bridge, *comment, "-j", "ACCEPT")
        # Stays on afterwards: another lab, or a Docker engine started since, may rely on it.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def down(self) -> None:
        """Remove whatever of it is there."""
        for table in ("nat", "filter"):
            for rule in shell.run(["iptables", "-t", table, "-S"], check=False).splitlines():
                words = shlex.split(rule)
                if self._comment in words and words[0] == "-A":
                    _iptables("-t", table, "-D", *words[1:])
        for link in json.loads(shell.run(["ip", "-j", "link"])):
            if link["ifname"].startswith(f"{self.bridge}-"):
                shell.run(["ip", "link", "delete", link["ifname"]], check=False)  # a veth goes with its peer
        shell.run(["ip", "link", "delete", self.bridge], check=False)
        if Path("/run/netns", self.namespace).exists():
            _ip("netns", "delete", self.namespace)

    def is_up(self) -> bool:
        """Whether the bridge is there; not after a reboot of this machine."""
        return Path("/sys/class/net", self.bridge).exists()

    def plug(self, index: int, connected: bool) -> None:
        """Pull the network cable of the host `index`, or put it back. Raises CommandFailed.

        The bridge's port is closed: a tap that was down stays dead for the guest's driver when it comes up again.
        """
        shell.run(["bridge", "link", "set", "dev", self.tap(index), "state", _FORWARDING if connected else _CLOSED])

    def is_plugged(self, index: int) -> bool:
        """Whether the host's cable is in."""
        port = json.loads(shell.run(["bridge", "-j", "link", "show", "dev", self.tap(index)]))[0]
        return bool(port["state"] == "forwarding")

    @property
    def _comment(self) -> str:
        return f"lyttle-lab-{self.identity}"

    @property
    def _prefix6(self) -> str:
        third = ipaddress.ip_network(self.subnet).network_address.packed[1:3]
        return f"fd4c:{self.identity[:4]}:{int.from_bytes(third):x}"

    def _address(self, number: int) -> str:
        return str(ipaddress.ip_network(self.subnet)[number])


def mtu() -> int:
    """Of this machine's way out: larger packets of the guests would be lost there (bytes)."""
    for route in json.loads(shell.run(["ip", "-j", "route", "show", "default"])):
        return int(Path("/sys/class/net", route["dev"], "mtu").read_text())
    return 1500


def _routed() -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    routes = json.loads(shell.run(["ip", "-4", "-j", "route"]))
    return [ipaddress.ip_network(route["dst"], strict=False) for route in routes if route["dst"] != "default"]


def _ip(*words: str) -> None:
    shell.run(["ip", *words])


def _iptables(*words: str) -> None:
    shell.run(["iptables", "--wait", *words])

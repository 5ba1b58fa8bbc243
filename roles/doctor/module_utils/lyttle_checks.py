"""What the doctor looks at on one host. Reads only; every look ends within seconds. Python 3.9, standard library."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SITE = "run playbooks/site.yml"
_CONNECT = 4  # seconds for one TCP connection
_COMMAND = 15  # seconds for one command of docker


def finding(check: str, message: str, remedy: str = "", level: str = "error") -> dict[str, Any]:
    """One finding; without a remedy it is what was found in order."""
    ok = not remedy
    return {"check": check, "ok": ok, "level": "ok" if ok else level, "message": message, "remedy": remedy}


def run(argv: list[str], seconds: float = _COMMAND) -> tuple[int, str, str]:
    """Exit code, output and the last line of the complaint; code 124 when it took too long."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer within {seconds:.0f} s"
    except OSError as exc:
        return 127, "", str(exc)
    lines = done.stderr.strip().splitlines()
    return done.returncode, done.stdout, lines[-1] if lines else ""


def read_json(argv: list[str]) -> Any:
    """What a command prints as JSON; None when it fails."""
    code, out, _ = run(argv)
    try:
        return json.loads(out) if code == 0 else None
    except ValueError:
        return None


def docker(member: bool, manager: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The engine and this host's part in the Swarm; and `docker info`, empty when there is no engine."""
    if shutil.which("docker") is None:
        return [finding("docker", "Docker is not installed", SITE)] if member else [], {}
    code, out, complaint = run(["docker", "info", "--format", "{{json .}}"])
    info: dict[str, Any] = json.loads(out) if code == 0 else {}
    if code != 0 or not info.get("ServerVersion"):
        said = complaint or "; ".join(info.get("ServerErrors") or ()) or "docker info fails"
        return [finding("docker", f"the engine does not answer: {said}", "see systemctl status docker there")], {}
    found = []
    version = info["ServerVersion"]
    if tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2]) < (20, 10):
        found.append(finding("docker", f"Docker {version} is too old", "upgrade to 20.10 or newer"))
    options = " ".join(info.get("SecurityOptions") or ())
    config = "/etc/docker/daemon.json"
    if "name=userns" in options:
        found.append(
            finding(
                "docker",
                "userns-remap is on, which forbids the host network that the holder of the ports needs",
                f'remove "userns-remap" from {config} and restart Docker; its images and containers start anew',
            )
        )
    if "name=rootless" in options:
        found.append(
            finding("docker", "the engine is rootless, which Swarm does not support", "install Docker for root")
        )
    if info.get("LiveRestoreEnabled"):
        found.append(
            finding(
                "docker",
                "live-restore is on, which Docker refuses together with Swarm",
                f'remove "live-restore" from {config} and restart Docker',
            )
        )
    if not found:
        found.append(finding("docker", f"Docker {version}"))
    if member:
        found.append(_membership(info.get("Swarm") or {}, manager))
    return found, info


def _membership(swarm: dict[str, Any], manager: bool) -> dict[str, Any]:
    state, complaint = swarm.get("LocalNodeState", "inactive"), swarm.get("Error") or ""
    if state == "locked":
        return finding("swarm", "this manager is locked", "docker swarm unlock there")
    if state != "active":
        return finding("swarm", f"this host is in no Swarm ({state}){complaint and ': ' + complaint}", SITE)
    if complaint:
        return finding("swarm", complaint, "see `docker info` and journalctl -u docker there")
    if manager and not swarm.get("ControlAvailable"):
        return finding("swarm", "this host stands in the group managers and is a worker", SITE)
    return finding("swarm", f"{'manager' if swarm.get('ControlAvailable') else 'worker'} of a Swarm")


def ports(wanted: list[int], deployed: bool) -> list[dict[str, Any]]:
    """Whether the ports that the stack serves are free, or its own."""
    taken = _listeners(set(wanted))
    found = []
    for port in wanted:
        owners = taken.get(port)
        if not owners:
            if deployed:
                found.append(
                    finding(
                        "ports",
                        f"nobody listens on port {port}, though the stack is deployed",
                        "see `docker service ps lyttlenginx_ports` and its log on a manager",
                    )
                )
            continue
        if not any("lyttle" in command for _, command in owners):
            pid, command = owners[0]
            name = os.path.basename(command.split(" ")[0]) or "a process of the kernel"
            remedy = "stop that program and keep it from starting (systemctl disable --now ...)"
            if name == "dockerd" or name == "docker-proxy":
                remedy = "a container publishes it: see docker ps and docker service ls there, and publish another port"
            found.append(finding("ports", f"port {port} is taken by {name} (process {pid})", remedy))
    return found or [finding("ports", f"ports {', '.join(map(str, wanted))} are {'held' if deployed else 'free'}")]


def _listeners(wanted: set[int]) -> dict[int, list[tuple[int, str]]]:
    """Port -> the processes (pid, command line) that hold a listening socket on it."""
    inodes: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:  # no IPv6
            continue
        for row in rows:
            port = int(row[1].rpartition(":")[2], 16)
            if row[3] == "0A" and port in wanted:  # LISTEN (include/net/tcp_states.h)
                inodes[row[9]] = port
    held: dict[int, list[tuple[int, str]]] = {port: [] for port in inodes.values()}
    if not inodes:
        return {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            handles = {os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd")}
            with open(f"/proc/{entry}/cmdline") as file:
                command = file.read().replace("\0", " ").strip()
        except OSError:
            continue  # gone meanwhile
        for port in {port for inode, port in inodes.items() if f"socket:[{inode}]" in handles}:
            held[port].append((int(entry), command))
    return {port: owners or [(0, "")] for port, owners in held.items()}


def peers(others: dict[str, str], managers: dict[str, str], active: bool) -> list[dict[str, Any]]:
    """Whether the other nodes' Swarm ports answer; before there is a Swarm, whether nothing between blocks them."""
    targets = [(name, address, 7946) for name, address in others.items()]
    targets += [(name, address, 2377) for name, address in managers.items()]
    if not targets:
        return []
    with ThreadPoolExecutor(max_workers=min(32, len(targets))) as pool:
        said = list(pool.map(lambda target: (*target, connect(target[1], target[2])), targets))
    found = []
    for name, address, port, complaint in said:
        # A refusal comes from the host itself, so nothing between blocks the port.
        if complaint is None or (complaint == "refused" and not active):
            continue
        if complaint == "refused":
            remedy = f"see whether {name} is in the Swarm (docker node ls), else {SITE}"
            found.append(finding("network", f"{name} ({address}) has nothing on {port}/tcp", remedy))
        else:
            remedy = f"open {port}/tcp from here to there; roles/swarm/README.md has the firewall's table"
            found.append(finding("network", f"{name} ({address}) cannot be reached on {port}/tcp: {complaint}", remedy))
    return found or [finding("network", f"the Swarm ports of {len(others)} other nodes can be reached")]


def connect(address: str, port: int) -> str | None:
    """None when a connection succeeds, "refused", or what else went wrong."""
    try:
        socket.create_connection((address, port), timeout=_CONNECT).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError as exc:
        return str(exc.strerror or exc)
    return None


_SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # answered by S or N (PostgreSQL's protocol, "SSL Session Encryption")


def database_answers(host: str, port: int) -> list[dict[str, Any]]:
    """Whether a PostgreSQL answers there, whatever its certificate is worth and whoever may log in."""
    where, said = f"PostgreSQL at {host}:{port}", "something else listens there"
    try:
        with socket.create_connection((host, port), timeout=_CONNECT) as plain:
            plain.sendall(_SSL_REQUEST)
            if plain.recv(1) in (b"S", b"N"):
                return [finding("database", f"{where} answers")]
    except OSError as exc:
        said = _complaint(exc)
    return [_no_database(where, said)]


def database_handshake(host: str, port: int, authority: str) -> list[dict[str, Any]]:
    """Whether PostgreSQL is there and shows a certificate that verify-full accepts. No password is needed for that."""
    where = f"PostgreSQL at {host}:{port}"
    context = ssl.create_default_context()
    if authority:
        context.load_verify_locations(cadata=authority)
    try:
        with socket.create_connection((host, port), timeout=_CONNECT) as plain:
            plain.sendall(_SSL_REQUEST)
            if plain.recv(1) != b"S":
                return [finding("database", f"{where} offers no TLS", "set ssl = on there, with a certificate")]
            with context.wrap_socket(plain, server_hostname=host):
                return [finding("database", f"{where} answers, its certificate is good")]
    except ssl.SSLCertVerificationError as exc:
        remedy = "see that stack_database_ca is who signed it, and that the URL has a name it is made for"
        return [finding("database", f"{where}: its certificate is refused: {exc.verify_message}", remedy)]
    except OSError as exc:
        return [_no_database(where, _complaint(exc))]


def _no_database(where: str, said: str) -> dict[str, Any]:
    remedy = f"see that it runs (else {SITE}), and open that port from the nodes to it"
    return finding("database", f"{where} cannot be reached: {said}", remedy)


def _complaint(exc: OSError) -> str:
    return exc.strerror or str(exc) or type(exc).__name__


# Runs in the node's container, which alone knows the database's URL; prints no part of it.
_DATABASE = """
import json, psycopg
from lyttle_ops import settings
url = settings.load().database_url.get_secret_value()
asked = "SELECT current_setting('server_version_num')::int, current_setting('max_connections')::int,"
asked += " coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)"
try:
    with psycopg.connect(url, connect_timeout=5, options="-c statement_timeout=4000") as connection:
        version, connections, ssl = connection.execute(asked).fetchone()
    mode = psycopg.conninfo.conninfo_to_dict(url).get("sslmode", "prefer")
    print(json.dumps({"version": version, "connections": connections, "ssl": ssl, "mode": mode}))
except psycopg.Error as exc:
    print(json.dumps({"error": str(exc).strip().splitlines()[-1] if str(exc).strip() else type(exc).__name__}))
"""


def database_inside(container: str, nodes: int) -> list[dict[str, Any]]:
    """What the node itself sees of PostgreSQL: TLS with verify-full, its version, its room for connections."""
    code, out, complaint = inside(container, _DATABASE)
    try:
        said = json.loads(out)
    except ValueError:
        return [finding("database", f"the node's container could not be asked: {complaint or code}", "see its log")]
    if "error" in said:
        return [
            finding("database", f"PostgreSQL cannot be used: {said['error']}", "see that it runs and can be reached")
        ]
    found = []
    if said["version"] < 140000:
        found.append(finding("database", f"PostgreSQL {said['version'] // 10000} is too old", "upgrade to 14 or newer"))
    if not said["ssl"] or said["mode"] != "verify-full":
        message = f"the connection to PostgreSQL is {'not encrypted' if not said['ssl'] else 'not verified'}"
        found.append(finding("database", message, "write sslmode=verify-full and sslrootcert into the database URL"))
    wanted = 11 * nodes + 10
    if said["connections"] < wanted:
        message = f"max_connections is {said['connections']}; {nodes} nodes may need {wanted}"
        found.append(finding("database", message, f"set it to {wanted} or more", "warning"))
    return found or [finding("database", f"PostgreSQL {said['version'] // 10000}, TLS verified")]


# A refusal from a port where nobody listens has crossed the overlay network twice.
_OVERLAY = """
import json, socket, sys
name, silent, asked = sys.argv[1], [], 0
try:
    addresses = {each[4][0] for each in socket.getaddrinfo(name, 9, socket.AF_INET, socket.SOCK_STREAM)}
except OSError:
    addresses = set()
for address in sorted(addresses):
    asked += 1
    try:
        socket.create_connection((address, 9), timeout=2).close()
    except ConnectionRefusedError:
        pass
    except OSError:
        silent.append(address)
    if len(silent) > 3:
        break
print(json.dumps({"asked": asked, "silent": silent}))
"""


def overlay(container: str, service: str) -> list[dict[str, Any]]:
    """Whether the overlay network reaches the other nodes: the only look that sees VXLAN's 4789/udp."""
    code, out, complaint = inside(container, _OVERLAY, f"tasks.{service}")
    try:
        said = json.loads(out)
    except ValueError:
        message = f"the overlay network could not be tried: {complaint or code}"
        return [finding("overlay", message, "see the container's log", "warning")]
    if said["silent"]:
        message = f"tasks on other nodes do not answer over the overlay network: {', '.join(said['silent'])}"
        remedy = "open 4789/udp and 7946 (tcp and udp) between all nodes; upstreams on overlay networks fail meanwhile"
        return [finding("overlay", message, remedy)]
    return [finding("overlay", f"{said['asked']} tasks answer over the overlay network")] if said["asked"] else []


def inside(container: str, program: str, *arguments: str) -> tuple[int, str, str]:
    """Run a program of Python in the node's container."""
    argv = ["docker", "exec", container, "python3", "-c", program, *arguments]
    return run(argv, 20)


def shared_folder(path: str) -> list[dict[str, Any]]:
    """Whether the NFS folder is mounted and answers. The look is a child's: one that hangs in the kernel is left."""
    # The folder is uid 7443's alone, and the server takes root for nobody: to be refused is to be answered.
    program = (
        "import contextlib, os, sys\n"
        "with contextlib.suppress(PermissionError):\n"
        "    os.listdir(sys.argv[1])\n"
        "print(os.stat(sys.argv[1]).st_dev)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        _, complaint = child.communicate(timeout=8)
    except subprocess.TimeoutExpired:
        child.kill()
        remedy = "see that the NFS server runs and 2049/tcp is open from here; the nodes serve on without it"
        return [finding("nfs", f"{path} does not answer within 8 s", remedy)]
    if child.returncode != 0:
        if b"FileNotFoundError" in complaint:
            return [finding("nfs", f"{path} does not exist", SITE)]
        last = (complaint.decode(errors="replace").strip().splitlines() or ["it fails"])[-1]
        remedy = f"see `systemctl list-units --type automount,mount` and `journalctl -b | grep nfs` there, else {SITE}"
        return [finding("nfs", f"{path} cannot be read: {last}", remedy)]
    with open("/proc/self/mounts") as mounts:
        kinds = {line.split()[2] for line in mounts if line.split()[1] == path}
    if not any(kind.startswith("nfs") for kind in kinds):
        return [finding("nfs", f"{path} is no NFS mount", SITE)]
    return [finding("nfs", f"{path} answers")]


def disk(paths: list[str]) -> list[dict[str, Any]]:
    """Free room where Docker and the node write."""
    found, seen = [], set()
    for path in filter(os.path.isdir, paths):
        device = os.stat(path).st_dev
        if device in seen:
            continue
        seen.add(device)
        room = os.statvfs(path)
        free, part = room.f_bavail * room.f_frsize, room.f_bavail / max(1, room.f_blocks)
        remedy = "make room: `docker system prune` removes what no container uses"
        if free < 1 << 30:
            found.append(finding("disk", f"{path} has {free >> 20} MiB left; an image needs more", remedy))
        elif part < 0.1:
            found.append(finding("disk", f"{path} has {part:.0%} left ({free >> 30} GiB)", remedy, "warning"))
        if room.f_files and room.f_favail / room.f_files < 0.05:
            found.append(finding("disk", f"{path} has {room.f_favail} inodes left", remedy))
    return found or [finding("disk", "there is room on the disks")]


def synchronised() -> list[dict[str, Any]]:
    """Whether something keeps the clock right."""
    code, out, _ = run(["timedatectl", "show", "--property", "NTPSynchronized", "--value"], 5)
    if code == 0 and out.strip() == "no":
        remedy = "install a time service, as systemd-timesyncd or chrony"
        return [finding("clock", "nothing keeps the clock right", remedy, "warning")]
    return []

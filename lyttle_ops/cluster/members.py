"""Members: who is in the cluster, told by one statement per node every 30 seconds.

A node is a machine; an instance is one start on it. During an update a node has two instances, the old one and
its successor, and both run; counts of N count nodes. Status: active; stale (two minutes without a heartbeat);
inactive (it left cleanly).
"""

import logging
import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psutil
from prometheus_client import Counter, Gauge
from psycopg.types.json import Jsonb

from lyttle_ops import __version__
from lyttle_ops.cluster.leadership import LEADER_LOCK, STANDBY_LOCK, lock_identity
from lyttle_ops.db import Database, load_queries
from lyttle_ops.db.connection import Connection
from lyttle_ops.errors import LyttleOpsError

log = logging.getLogger(__name__)
queries = load_queries("lyttle_ops.cluster")

_heartbeats = Counter("lyttle_heartbeats_total", "Heartbeats PostgreSQL accepted")
_nodes = Gauge("lyttle_nodes", "Nodes of the cluster as the last heartbeat saw them", ["state"])

HEARTBEAT_INTERVAL = 30.0  # seconds
STALE_AFTER = 120.0  # seconds; the queries say '2 minutes'


class NodeNameTaken(LyttleOpsError):
    """Another machine that is alive uses this node name."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What PostgreSQL answers a heartbeat with."""

    registered: bool  # the row was not there: the first heartbeat, or one after it was deleted
    revision: int  # cluster_state.revision: behind it means something is to be fetched
    certificates_due: bool  # some certificate may be worked on now
    has_leader: bool
    has_standby: bool


class Member:
    """This instance's membership. `keys` are the ids of the master keys it has."""

    def __init__(
        self, database: Database, instance_id: UUID, node_name: str, machine_id: str, keys: Sequence[str] = ()
    ) -> None:
        self._database = database
        self._instance_id = instance_id
        self._node_name = node_name
        self._machine_id = machine_id
        self._keys = list(keys)

    def heartbeat(self) -> Heartbeat:
        """Say that this instance lives; one statement. The first one registers it.

        Raises NodeNameTaken when another machine that is alive has this name (that one is not disturbed), and
        DatabaseError.
        """
        leader_classid, leader_objid = lock_identity(LEADER_LOCK)
        standby_classid, standby_objid = lock_identity(STANDBY_LOCK)
        parameters = {
            "instance_id": self._instance_id,
            "node_name": self._node_name,
            "machine_id": self._machine_id,
            "hostname": socket.gethostname(),
            "version": __version__,
            "metadata": Jsonb({**_metadata(), "master_keys": self._keys}),
            "leader_classid": leader_classid,
            "leader_objid": leader_objid,
            "standby_classid": standby_classid,
            "standby_objid": standby_objid,
        }
        with self._database.connection() as connection:
            row = connection.execute(queries.heartbeat, parameters).fetchone()
        if row is None:
            raise NodeNameTaken(
                f"another machine that is alive uses the node name {self._node_name!r}; "
                "set NODE_NAME to a name of its own on one of them"
            )
        _heartbeats.inc()
        _nodes.labels("active").set(row["active"])
        _nodes.labels("gone").set(row["nodes"] - row["active"])
        fields = ("registered", "revision", "certificates_due", "has_leader", "has_standby")
        return Heartbeat(*(row[field] for field in fields))

    def bury(self, dead: list[UUID]) -> None:
        """Record that these instances of this node died."""
        if dead:
            with self._database.connection() as connection:
                connection.execute(queries.bury, {"dead": dead, "node_name": self._node_name})

    def report_applied(self, revision: int, release: str, quarantined: dict[int, str]) -> None:
        """Record what this instance serves."""
        with self._database.connection() as connection:
            connection.execute(
                queries.report_applied,
                {
                    "instance_id": self._instance_id,
                    "revision": revision,
                    "release": release,
                    "quarantined": Jsonb({str(site): message for site, message in quarantined.items()}),
                },
            )

    def leave(self) -> None:
        """Leave cleanly: inactive at once."""
        with self._database.connection() as connection:
            connection.execute(queries.leave, {"instance_id": self._instance_id})


def list_nodes(connection: Connection) -> list[dict[str, Any]]:
    """A dict a node: name, instance_id, hostname, version, status (active, stale, inactive), is_leader,
    is_standby, instances (alive on this node), started_at, last_heartbeat_at, heartbeat_age (seconds),
    applied_revision, applied_release, applied_at, quarantined ({proxy id: NGINX's message}), metadata."""
    who = cluster_leader(connection)
    leader, standby = who["leader"], who["standby"]
    nodes = connection.execute(queries.list_nodes).fetchall()
    for node in nodes:
        node["is_leader"] = leader is not None and node["name"] == leader["node"]
        node["is_standby"] = standby is not None and node["name"] == standby["node"]
    return nodes


def cluster_leader(connection: Connection) -> dict[str, Any]:
    """{"term", "leader": {"node", "instance_id", "acquired_at"} | None, "standby": {"node"} | None}, as PostgreSQL's
    own lock table shows it now."""
    classid, objid = lock_identity(LEADER_LOCK)
    row = connection.execute(queries.leadership, {"leader_classid": classid, "leader_objid": objid}).fetchone()
    assert row is not None  # the migration put it there
    leader = {"node": row["node_name"], "instance_id": row["instance_id"], "acquired_at": row["acquired_at"]}
    return {
        "term": row["term"],
        "leader": leader if row["led"] else None,
        "standby": {"node": row["standby"]} if row["standby"] else None,
    }


def cluster_stats(connection: Connection) -> dict[str, Any]:
    """Counts: nodes by status, proxies, certificates, the newest revision, nodes that serve it, the leader.

    Certificates are the wanted ones, those of enabled ssl proxies: total; valid (served, not expired); failing (no
    success since the last failure); installed (valid, and shown by a handshake on every active node).
    """
    nodes = list_nodes(connection)
    counts = connection.execute(queries.stats).fetchone()
    assert counts is not None  # aggregates always give a row
    active = [node for node in nodes if node["status"] == "active"]
    return {
        "nodes": {
            "total": len(nodes),
            **{status: sum(n["status"] == status for n in nodes) for status in ("active", "stale", "inactive")},
        },
        "leader": next((node["name"] for node in nodes if node["is_leader"]), None),
        "standby": next((node["name"] for node in nodes if node["is_standby"]), None),
        "proxies": {"total": counts["proxies"], "enabled": counts["proxies_enabled"]},
        "certificates": {
            "total": counts["certificates"],
            "valid": counts["certificates_valid"],
            "failing": counts["certificates_failing"],
            "installed": counts["certificates_installed"],
        },
        "revision": counts["revision"],
        "nodes_current": sum(node["applied_revision"] >= counts["revision"] for node in active),
    }


def nodes_without_key(connection: Connection, key_id: str) -> list[str]:
    """Names of the active nodes that have an instance without the master key `key_id`."""
    return [row["node_name"] for row in connection.execute(queries.nodes_without_key, {"key_id": key_id})]


def prune(connection: Connection) -> int:
    """Delete instances gone for a day and nodes gone for a week; how many rows."""
    return connection.execute(queries.prune_instances).rowcount + connection.execute(queries.prune_nodes).rowcount


def _metadata() -> dict[str, Any]:
    """CPU, memory and platform of this machine, for people who look at the table of nodes."""
    memory = psutil.virtual_memory()
    return {
        "cpu_count": psutil.cpu_count(),
        "cpu_percent": psutil.cpu_percent(),  # since the last heartbeat
        "load_average": list(os.getloadavg()),
        "memory_total": memory.total,
        "memory_available": memory.available,
        "process_memory": psutil.Process().memory_info().rss,
        "platform": platform.platform(),
        "python": platform.python_version(),
    }

"""The cluster at a glance: one row a node, from the nodes' own status files and from PostgreSQL."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lyttle_ops.cluster import members
from lyttle_ops.db import Database, DatabaseError, load_queries
from lyttle_ops.db.connection import Connection
from lyttle_ops.local.cluster import LocalCluster
from lyttle_ops.local.state import State

queries = load_queries("lyttle_ops.local")


@dataclass(frozen=True, slots=True)
class Row:
    """One node as the table shows it."""

    name: str
    role: str  # leader, standby, follower, or why it is none
    running: bool
    nginx: bool
    release: str | None
    installed: int | None  # of `certificates`; None when PostgreSQL does not say
    certificates: int | None
    heartbeat_age: float | None  # seconds


class Overview:
    """Looks at a running cluster; `database_url` is its PostgreSQL."""

    def __init__(self, cluster: LocalCluster, database_url: str) -> None:
        self._cluster = cluster
        # One connection and no pool: a pool waits for a database that is away, and a Ctrl-C would wait with it.
        self._database = Database(database_url, "lyttle/overview", size=0)
        self._connection: Connection | None = None

    def rows(self, state: State) -> list[Row]:
        """What the nodes say; what PostgreSQL adds is None while it does not answer."""
        statuses = self._cluster.node_statuses(state)
        try:
            known, installed, total = self._ask()
        except DatabaseError:
            self.close()
            known, installed, total = {}, {}, None
        rows = []
        for node in state.layout.all_nodes():
            status = statuses[node.name]
            member = known.get(node.name)
            role = status.state
            if status.state == "ready":
                standby = member is not None and member["is_standby"]
                role = "leader" if status.leader else "standby" if standby else "follower"
            rows.append(
                Row(
                    name=node.name,
                    role=role,
                    running=status.pid is not None,
                    nginx=status.nginx,
                    release=status.release,
                    installed=installed.get(status.instance or "", 0) if total is not None else None,
                    certificates=total,
                    heartbeat_age=member["heartbeat_age"] if member is not None else None,
                )
            )
        return rows

    def close(self) -> None:
        if self._connection is not None:
            with suppress(DatabaseError), self._database.translated():
                self._connection.close()
            self._connection = None

    def _ask(self) -> tuple[dict[str, dict[str, Any]], dict[str, int], int]:
        if self._connection is None:
            self._connection = self._database.connect()
        with self._database.translated():
            known = {node["name"]: node for node in members.list_nodes(self._connection)}
            rows = self._connection.execute(queries.installed).fetchall()
            installed = {row["instance_id"]: int(row["installed"]) for row in rows}
            total = self._connection.execute(queries.wanted_certificates).fetchone()
        return known, installed, int(total["total"]) if total is not None else 0

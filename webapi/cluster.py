"""/cluster: the nodes, the counts and the leader."""

from typing import Any, Literal
from uuid import UUID

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from lyttle_ops.cluster import members
from webapi.documents import TOKEN, failures, reply
from webapi.services import services

blueprint = APIBlueprint(
    "cluster",
    __name__,
    url_prefix="/cluster",
    abp_tags=[Tag(name="cluster", description="who serves and who leads")],
    abp_security=TOKEN,
)


class NodeBody(BaseModel):
    """A node, seen through its newest living instance."""

    model_config = ConfigDict(extra="ignore")

    name: str
    instance_id: UUID
    hostname: str
    version: str
    status: Literal["active", "stale", "inactive"] = Field(description="stale: two minutes without a heartbeat")
    is_leader: bool
    is_standby: bool = Field(description="next in line: it waits inside the leader's lock")
    instances: int = Field(description="living instances; two during an update")
    started_at: AwareDatetime
    last_heartbeat_at: AwareDatetime
    heartbeat_age: float = Field(description="seconds")
    applied_revision: int
    applied_release: str | None
    applied_at: AwareDatetime | None
    quarantined: dict[str, str] = Field(description="proxy id to NGINX's message, for entries it leaves out")
    metadata: dict[str, Any] = Field(description="cpu, memory, platform")


class NodesBody(BaseModel):
    """Every node."""

    items: list[NodeBody]
    total: int


class NodeCounts(BaseModel):
    """Nodes by status."""

    total: int
    active: int
    stale: int
    inactive: int


class ProxyCounts(BaseModel):
    """Proxy entries."""

    total: int
    enabled: int


class CertificateCounts(BaseModel):
    """Certificates that enabled ssl entries want; others do not count."""

    total: int
    valid: int = Field(description="issued and not expired")
    failing: int = Field(description="no success since the last failure")
    installed: int = Field(description="valid, and shown by a real TLS handshake on every active node")


class StatsBody(BaseModel):
    """The cluster in numbers."""

    model_config = ConfigDict(extra="ignore")

    nodes: NodeCounts
    leader: str | None
    standby: str | None
    proxies: ProxyCounts
    certificates: CertificateCounts
    revision: int = Field(description="number of the newest change")
    nodes_current: int = Field(description="active nodes that serve the newest change")


class Leader(BaseModel):
    """Who leads."""

    node: str
    instance_id: UUID
    acquired_at: AwareDatetime


class Standby(BaseModel):
    """Who is next."""

    node: str


class LeaderBody(BaseModel):
    """Who leads and who is next; null while there is nobody."""

    term: int = Field(description="counts changes of leadership")
    leader: Leader | None
    standby: Standby | None


@blueprint.get("/nodes", responses={200: NodesBody, **failures(401, 503)})
def nodes() -> Response:
    """Every node with its state"""
    with services().database.connection() as connection:
        rows = members.list_nodes(connection)
    body = NodesBody(items=[NodeBody.model_validate(row) for row in rows], total=len(rows))
    return reply(body)


@blueprint.get("/stats", responses={200: StatsBody, **failures(401, 503)})
def stats() -> Response:
    """The cluster in numbers"""
    with services().database.connection() as connection:
        body = StatsBody.model_validate(members.cluster_stats(connection))
    return reply(body)


@blueprint.get("/leader", responses={200: LeaderBody, **failures(401, 503)})
def leader() -> Response:
    """Who leads and who is next, from PostgreSQL's own lock table"""
    with services().database.connection() as connection:
        body = LeaderBody.model_validate(members.cluster_leader(connection))
    return reply(body)

"""/health: whether this process answers, and whether the instance as a whole is ready. Neither uses SQL."""

import time

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from webapi.documents import failures, reply
from webapi.errors import FieldError, error_response
from webapi.services import read_status

blueprint = APIBlueprint(
    "health", __name__, url_prefix="/health", abp_tags=[Tag(name="health", description="for health checks; no token")]
)

OLDEST_STATUS = 10.0  # seconds; the node writes its status every 2


class LiveBody(BaseModel):
    """The API process answers."""

    status: str


class CheckBody(BaseModel):
    """One check of the node."""

    ok: bool
    message: str


class NoteBody(BaseModel):
    """Something to know that makes no instance unready."""

    ok: bool
    message: str
    since: str = Field(description="when it became so, UTC")


class NodeStatus(BaseModel):
    """What the node's status file says, as far as it matters here."""

    model_config = ConfigDict(extra="ignore")

    written_at: float
    state: str
    failure: str | None
    node: str
    instance_id: str
    version: str
    leader: bool
    term: int | None
    revision: int
    checks: dict[str, CheckBody]
    notes: dict[str, NoteBody] = {}


class ReadyBody(BaseModel):
    """The instance serves."""

    model_config = ConfigDict(extra="ignore")

    status: str
    node: str
    instance_id: str
    version: str
    leader: bool
    term: int | None
    revision: int
    checks: dict[str, CheckBody]
    notes: dict[str, NoteBody] = {}


@blueprint.get("/live", responses={200: LiveBody, **failures()})
def live() -> Response:
    """Whether the API process answers"""
    return reply(LiveBody(status="ok"))


@blueprint.get("/ready", responses={200: ReadyBody, **failures(503)})
def ready() -> Response:
    """Whether this instance is ready; 503 names the failing checks as fields"""
    status = _status()
    if isinstance(status, FieldError):
        return _not_ready([status])
    failing = _failing(status)
    if failing:
        return _not_ready(failing)
    body = ReadyBody.model_validate({**status.model_dump(), "status": "ready"})
    return reply(body)


def _status() -> NodeStatus | FieldError:
    content = read_status()
    if content is None:
        return FieldError(field="node", message="there is no status file: the node process is not running")
    try:
        status = NodeStatus.model_validate(content)
    except ValidationError as exc:
        return FieldError(field="node", message=f"its status file is not understood: {exc.errors()[0]['loc']}")
    age = time.time() - status.written_at
    if age > OLDEST_STATUS:
        # What an old file says about the checks is not known to be true any more.
        return FieldError(field="node", message=f"its status is {age:.0f} s old: the node process hangs or is gone")
    return status


def _failing(status: NodeStatus) -> list[FieldError]:
    failing = []
    if status.state != "ready":
        failing.append(FieldError(field="node", message=status.failure or f"is {status.state}"))
    failing += [
        FieldError(field=name, message=check.message or "failing")
        for name, check in status.checks.items()
        if not check.ok
    ]
    return failing


def _not_ready(failing: list[FieldError]) -> Response:
    names = ", ".join(field.field for field in failing)
    return error_response(503, "not_ready", f"failing: {names}", failing)

"""/health: whether this process answers, and whether the instance as a whole is ready. Neither uses SQL."""

import time
from typing import Any

from flask import Response, jsonify
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ConfigDict

from webapi.documents import failures
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


@blueprint.get("/live", responses={200: LiveBody, **failures()})
def live() -> Response:
    """Whether the API process answers"""
    return jsonify(LiveBody(status="ok").model_dump())


@blueprint.get("/ready", responses={200: ReadyBody, **failures(503)})
def ready() -> Response:
    """Whether this instance is ready; 503 names the failing checks as fields"""
    status = read_status()
    failing = _failing(status)
    if failing or status is None:
        names = ", ".join(field.field for field in failing)
        return error_response(503, "not_ready", f"failing: {names}", failing)
    body = ReadyBody.model_validate({**status, "status": "ready"})
    return jsonify(body.model_dump(mode="json"))


def _failing(status: dict[str, Any] | None) -> list[FieldError]:
    if status is None:
        return [FieldError(field="node", message="there is no status file: the node process is not running")]
    age = time.time() - status.get("written_at", 0)
    if age > OLDEST_STATUS:
        # What an old file says about the checks is not known to be true any more.
        return [FieldError(field="node", message=f"its status is {age:.0f} s old: the node process hangs or is gone")]
    failing = []
    if status.get("state") != "ready":
        message = status.get("failure") or f"is {status.get('state')}"
        failing.append(FieldError(field="node", message=str(message)))
    failing += [
        FieldError(field=name, message=check["message"] or "failing")
        for name, check in status.get("checks", {}).items()
        if not check["ok"]
    ]
    return failing

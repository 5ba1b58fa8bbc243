"""/proxy: entries, each with its certificate and the nodes that serve it."""

from typing import Annotated, Any, Literal

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from lyttle_ops import proxies
from lyttle_ops.proxies import ProxyChanges, ProxyInput
from lyttle_ops.proxies.domains import normalise_domain
from webapi.bodies import json_object
from webapi.candidates import nginx_message
from webapi.documents import TOKEN, Query, failures, reply
from webapi.errors import FieldError, conflict_fields, field_errors
from webapi.services import services

blueprint = APIBlueprint(
    "proxy",
    __name__,
    url_prefix="/proxy",
    abp_tags=[Tag(name="proxy", description="which domains lead where")],
    abp_security=TOKEN,
)


class ProxyPath(BaseModel):
    """The id of an entry."""

    proxy_id: int = Field(description="id of the entry")


class ListQuery(Query):
    """A part of the list."""

    domain: Annotated[str, AfterValidator(normalise_domain)] | None = Field(
        None, description="only the entry that has this domain"
    )
    limit: int = Field(100, ge=1, le=1000, description="most entries to answer with")
    offset: int = Field(0, ge=0, le=2**31 - 1, description="entries to leave out at the start")


class ValidateQuery(Query):
    """What the checked entry is to replace."""

    id: int | None = Field(None, description="the entry that is edited, whose domains do not count as taken")


class ProxyCertificateBody(BaseModel):
    """The certificate of an ssl entry; /certificates/{id} has all there is."""

    model_config = ConfigDict(from_attributes=True)

    id: int | None = Field(description="null until a node has seen the entry")
    state: Literal["pending", "issuing", "issued", "renewing", "failed"]
    not_after: AwareDatetime | None
    attempts: int = Field(description="failures since the last success")
    last_error: str | None = Field(description="the CA's own words")
    next_try_at: AwareDatetime | None = Field(description="null when nothing holds a try up")


class RolloutBody(BaseModel):
    """How far the entry's newest version has come."""

    model_config = ConfigDict(from_attributes=True)

    state: Literal["disabled", "waiting", "quarantined", "live"] = Field(
        description="quarantined: NGINX refuses it on some node, see errors; live: on every active node"
    )
    nodes: int = Field(description="active nodes that serve it; 0 for a disabled entry")
    of: int = Field(description="active nodes")
    waiting: list[str] = Field(description="active nodes that have not taken up the newest version yet")
    errors: dict[str, str] = Field(description="node name to NGINX's own message, where the entry is left out")


class ProxyBody(BaseModel):
    """A proxy entry."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    domains: list[str] = Field(description="A-labels, lower case, sorted")
    proxy_pass_host: str
    type: Literal["PROXY", "REDIRECT"]
    ssl: bool
    enabled: bool
    nginx_custom_code: str
    force_https: bool
    hsts: bool
    websocket: bool
    client_max_body_size: int = Field(description="bytes, 0: unlimited")
    connect_timeout: int = Field(description="seconds")
    read_timeout: int = Field(description="seconds")
    verify_upstream_tls: bool
    redirect_code: int
    revision: int = Field(description="number of its last change in the cluster")
    created_at: AwareDatetime
    updated_at: AwareDatetime
    certificate: ProxyCertificateBody | None = Field(None, description="null without ssl")
    live: RolloutBody


class ProxySavedBody(ProxyBody):
    """A proxy entry as it was just saved."""

    warnings: list[str] = Field(description="what was asked for and has no effect")


class ProxyListBody(BaseModel):
    """A part of the list, oldest first."""

    items: list[ProxyBody]
    total: int = Field(description="entries that match, on this page or not")
    limit: int
    offset: int


class ValidationBody(BaseModel):
    """Whether NGINX would take the entry."""

    valid: bool
    errors: list[FieldError]


@blueprint.get("", responses={200: ProxyListBody, **failures(401, 422, 503)})
def index(query: ListQuery) -> Response:
    """All entries, a page at a time"""
    with services().database.connection() as connection:
        page = proxies.page_of_proxies(connection, query.domain, query.limit, query.offset)
    body = ProxyListBody(
        items=[_body(view) for view in page.items], total=page.total, limit=query.limit, offset=query.offset
    )
    return reply(body)


@blueprint.post(
    "",
    responses={
        201: {
            "description": "Created",
            "headers": {"Location": {"description": "path of the new entry", "schema": {"type": "string"}}},
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ProxySavedBody"}}},
        },
        **failures(400, 401, 409, 413, 415, 422, 503),
    },
)
def create(body: ProxyInput) -> Response:
    """Add an entry

    With ssl the cluster gets one certificate for all of its domains; HTTP is served meanwhile.
    """
    with services().database.connection() as connection:
        proxy = proxies.create_proxy(connection, body)
        view = proxies.view_of_proxy(connection, proxy.id)
    response = reply(_saved(view, body.model_fields_set), 201)
    response.headers["Location"] = f"/proxy/{proxy.id}"
    return response


@blueprint.get("/<int:proxy_id>", responses={200: ProxyBody, **failures(401, 404, 503)})
def show(path: ProxyPath) -> Response:
    """One entry"""
    with services().database.connection() as connection:
        return reply(_body(proxies.view_of_proxy(connection, path.proxy_id)))


@blueprint.patch("/<int:proxy_id>", responses={200: ProxySavedBody, **failures(400, 401, 404, 409, 413, 415, 422, 503)})
def change(path: ProxyPath, body: ProxyChanges) -> Response:
    """Change fields of an entry; what is absent stays as it is"""
    changes = body.model_dump(include=body.model_fields_set)
    with services().database.connection() as connection:
        proxies.update_proxy(connection, path.proxy_id, changes)
        view = proxies.view_of_proxy(connection, path.proxy_id)
    return reply(_saved(view, body.model_fields_set))


@blueprint.delete("/<int:proxy_id>", responses={204: None, **failures(401, 404, 503)})
def remove(path: ProxyPath) -> Response:
    """Remove an entry; all nodes stop serving its domains"""
    with services().database.connection() as connection:
        proxies.delete_proxy(connection, path.proxy_id)
    return Response(status=204)


_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ProxyInput"}}},
    }
}


@blueprint.post(
    "/validate",
    openapi_extensions=_REQUEST,
    responses={200: ValidationBody, **failures(400, 401, 413, 415, 422, 503)},
)
def validate(query: ValidateQuery) -> Response:
    """Try an entry without saving it

    Checks the fields and the domains, renders it and has NGINX test the result. The answer is 200 either way.
    """
    return reply(_validation(json_object(), query.id))


def _validation(body: dict[str, Any], proxy_id: int | None) -> ValidationBody:
    try:
        entry = ProxyInput.model_validate(body)
    except ValidationError as exc:
        return ValidationBody(valid=False, errors=field_errors(exc))
    errors: list[FieldError] = []
    with services().database.connection() as connection:
        conflict = proxies.find_conflict(connection, entry.domains, proxy_id)
    if conflict is not None:
        errors += conflict_fields(conflict)
    message = nginx_message(entry)
    if message is not None:
        errors.append(FieldError(field="nginx_custom_code" if entry.nginx_custom_code else "body", message=message))
    return ValidationBody(valid=not errors, errors=errors)


def _saved(view: proxies.ProxyView, written: set[str]) -> ProxySavedBody:
    warnings = list(proxies.warnings_about(view.proxy, written))
    return ProxySavedBody(**_body(view).model_dump(), warnings=warnings)


def _body(view: proxies.ProxyView) -> ProxyBody:
    certificate = ProxyCertificateBody.model_validate(view.certificate) if view.certificate else None
    fields = {name: getattr(view.proxy, name) for name in view.proxy.__slots__}
    return ProxyBody(
        **{**fields, "domains": list(view.proxy.domains)},
        certificate=certificate,
        live=RolloutBody(
            state=view.live.state,
            nodes=view.live.nodes,
            of=view.live.of,
            waiting=list(view.live.waiting),
            errors=dict(view.live.errors),
        ),
    )

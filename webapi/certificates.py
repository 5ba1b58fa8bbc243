"""/certificates: what is served, what is being issued, and why something is not."""

from typing import Literal

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from lyttle_ops.certificates import store
from lyttle_ops.certificates.model import CertificateNotFound
from webapi.documents import TOKEN, failures, reply
from webapi.services import services

blueprint = APIBlueprint(
    "certificates",
    __name__,
    url_prefix="/certificates",
    abp_tags=[Tag(name="certificates", description="issued once for the whole cluster")],
    abp_security=TOKEN,
)
_GREATEST_ID = 2**63 - 1


class CertificatePath(BaseModel):
    """The id of a certificate."""

    certificate_id: int = Field(description="id of the certificate")


class InstalledBody(BaseModel):
    """On how many active nodes a real TLS handshake showed the current certificate."""

    model_config = ConfigDict(from_attributes=True)

    nodes: int
    of: int
    missing: tuple[str, ...] = Field(description="names of the nodes that do not show it yet")


class OrderBody(BaseModel):
    """One order at the CA."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    state: Literal["intent", "created", "ready", "processing", "issued", "failed", "abandoned"]
    directory_url: str
    node_name: str = Field(description="who works or worked on it")
    serial: str | None
    not_before: AwareDatetime | None
    not_after: AwareDatetime | None
    error: str | None = Field(description="the CA's own words")
    created_at: AwareDatetime
    updated_at: AwareDatetime


class CertificateBody(BaseModel):
    """A certificate and the way to it; /certificates/{id} has its issuer and orders, too."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    domains: tuple[str, ...]
    state: Literal["pending", "issuing", "issued", "renewing", "failed"]
    stage: str = Field(description="the state in words")
    wanted: bool = Field(description="an enabled ssl entry has exactly these domains")
    serial: str | None = Field(description="lower-case hex")
    not_before: AwareDatetime | None
    not_after: AwareDatetime | None
    renew_at: AwareDatetime | None
    renewal_requested_at: AwareDatetime | None
    attempts: int = Field(description="failures since the last success")
    last_error: str | None = Field(description="the CA's own words")
    last_error_at: AwareDatetime | None
    next_try_at: AwareDatetime | None = Field(description="null when nothing holds a try up")
    installed: InstalledBody
    created_at: AwareDatetime


class CertificateDetailBody(CertificateBody):
    """A certificate with its issuer and its last orders."""

    issuer: str | None
    orders: tuple[OrderBody, ...] = Field(description="newest first, at most 20")


class RenewalBody(CertificateDetailBody):
    """A certificate that somebody wants renewed."""

    message: str = Field(description="what comes of the wish, in words")


class CertificateListBody(BaseModel):
    """Every certificate."""

    items: list[CertificateBody]
    total: int


@blueprint.get("", responses={200: CertificateListBody, **failures(401, 503)})
def index() -> Response:
    """Every certificate with its state and where it is installed"""
    with services().database.connection() as connection:
        views = store.list_certificates(connection)
    body = CertificateListBody(items=[CertificateBody.model_validate(view) for view in views], total=len(views))
    return reply(body)


@blueprint.get("/<int:certificate_id>", responses={200: CertificateDetailBody, **failures(401, 404, 503)})
def show(path: CertificatePath) -> Response:
    """One certificate with its orders"""
    _check_id(path.certificate_id)
    with services().database.connection() as connection:
        view = store.get_certificate(connection, path.certificate_id)
    return reply(CertificateDetailBody.model_validate(view))


@blueprint.post("/<int:certificate_id>/renew", responses={202: RenewalBody, **failures(401, 404, 409, 503)})
def renew(path: CertificatePath) -> Response:
    """Ask for a renewal

    Asked once or on all nodes at once, it is one order; the leader places it. A certificate that no enabled ssl entry
    wants is not renewed (409 not_wanted).
    """
    _check_id(path.certificate_id)
    with services().database.connection() as connection:
        asked = store.request_renewal(connection, path.certificate_id)
    shown = CertificateDetailBody.model_validate(asked.certificate)
    return reply(RenewalBody(**shown.model_dump(), message=asked.message), 202)


def _check_id(certificate_id: int) -> None:
    if certificate_id > _GREATEST_ID:
        raise CertificateNotFound(f"there is no certificate {certificate_id}")

"""Every error in one JSON shape, whatever raised it.

`{"error": {"code": "snake_case", "message": "...", "fields": [{"field": "domains.0", "message": "..."}]}}`
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flask import Flask, Response, current_app, g, jsonify, make_response, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from werkzeug.exceptions import HTTPException

from lyttle_ops.accounts import InvalidCredentials, PasswordRefused, SessionEnded, TooManyAttempts
from lyttle_ops.certificates.model import CertificateNotFound, CertificateNotWanted
from lyttle_ops.db import DatabaseBusy, DatabaseError, DatabaseMisconfigured, DatabaseUnavailable
from lyttle_ops.proxies import DomainTaken, ProxyNotFound
from webapi.services import services

log = logging.getLogger(__name__)

RETRY_UNAVAILABLE = 5  # seconds
RETRY_BUSY = 1  # seconds


class FieldError(BaseModel):
    """What is wrong with one field; `field` is its path, as domains.0."""

    model_config = ConfigDict(frozen=True)

    field: str
    message: str


class ErrorDetail(BaseModel):
    """An error; `code` is for programs and stays, `message` is for people and may change."""

    code: str = Field(pattern="^[a-z][a-z_]*$")
    message: str
    fields: list[FieldError]


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 or more."""

    error: ErrorDetail


def error_response(
    status: int,
    code: str,
    message: str,
    fields: Iterable[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response in the one shape."""
    body = ErrorBody(error=ErrorDetail(code=code, message=message, fields=list(fields)))
    response = make_response(jsonify(body.model_dump()), status)
    response.headers.update(dict(headers or {}))
    return response


def field_errors(error: ValidationError) -> list[FieldError]:
    """pydantic's errors by field path, in its words where they are for people."""
    return [_field_error(problem) for problem in error.errors(include_url=False, include_input=False)]


def validation_response(error: ValidationError) -> Response:
    """422 with every field that is wrong."""
    fields = field_errors(error)
    names = ", ".join(dict.fromkeys(field.field for field in fields))
    return error_response(422, "validation_failed", f"not valid: {names}", fields)


def conflict_fields(conflict: DomainTaken) -> list[FieldError]:
    """A taken domain as an error of the field `domains`."""
    return [FieldError(field="domains", message=str(conflict))]


def register(app: Flask) -> None:
    """Install the handlers."""
    app.register_error_handler(ValidationError, validation_response)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(ProxyNotFound, lambda exc: error_response(404, "proxy_not_found", str(exc)))
    app.register_error_handler(CertificateNotFound, lambda exc: error_response(404, "certificate_not_found", str(exc)))
    app.register_error_handler(CertificateNotWanted, lambda exc: error_response(409, "not_wanted", str(exc)))
    app.register_error_handler(DomainTaken, _domain_taken)
    app.register_error_handler(PasswordRefused, _password_refused)
    app.register_error_handler(InvalidCredentials, _invalid_credentials)
    app.register_error_handler(SessionEnded, lambda exc: unauthenticated("session_ended", str(exc)))
    app.register_error_handler(TooManyAttempts, _too_many_attempts)
    app.register_error_handler(DatabaseError, _database_error)
    app.register_error_handler(Exception, _unexpected)


def unauthenticated(code: str, message: str) -> Response:
    """401, with the challenge that RFC 9110 section 15.5.2 asks for."""
    return error_response(401, code, message, headers={"WWW-Authenticate": "Bearer"})


def _field_error(problem: Any) -> FieldError:
    where = ".".join(str(part) for part in problem["loc"])
    kind, message = problem["type"], problem["msg"]
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
        name, separator, rest = message.partition(": ")
        if not where and separator and name.isidentifier():  # a check of the whole entry names the field itself
            where, message = name, rest
    elif kind == "missing":
        message = "is required"
    elif kind == "extra_forbidden":
        message = "is not a field of this request"
    return FieldError(field=where or "body", message=message)


_PARAMETER = re.compile("<int:[^>]+>")  # the rules of this API need no escaping in an expression
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    415: "unsupported_media_type",
}


def _http_error(error: HTTPException) -> Any:
    status = error.code
    if error.response is not None or status is None or status < 400:
        return error  # a redirect, or a response that has its shape already
    code = _CODES.get(status, "bad_request" if status < 500 else "internal_error")
    message = _nothing_here() if status == 404 else error.description or error.name
    response = error_response(status, code, message)
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _nothing_here() -> str:
    path = request.path if len(request.path) <= 100 else request.path[:97] + "…"
    for rule in current_app.url_map.iter_rules():
        pattern = _PARAMETER.sub("[^/]+", rule.rule)
        if pattern != rule.rule and re.fullmatch(pattern, request.path):
            return f"there is nothing at {path}: an id is a whole number, as in {_PARAMETER.sub('5', rule.rule)}"
    return f"there is nothing at {path}; /openapi lists what there is"


def _domain_taken(error: DomainTaken) -> Response:
    return error_response(409, "domain_taken", str(error), conflict_fields(error))


def _password_refused(error: PasswordRefused) -> Response:
    return error_response(422, "validation_failed", str(error), [FieldError(field="new_password", message=str(error))])


def _invalid_credentials(error: InvalidCredentials) -> Response:
    return unauthenticated("invalid_credentials", str(error))


def _too_many_attempts(error: TooManyAttempts) -> Response:
    return error_response(429, "too_many_attempts", str(error), headers={"Retry-After": str(error.retry_after)})


def _database_error(error: DatabaseError) -> Response:
    # Its own words stay in the log: they may name hosts, users and statements.
    if isinstance(error, DatabaseBusy):
        return error_response(
            503, "database_busy", "the database is busy; try again", headers={"Retry-After": str(RETRY_BUSY)}
        )
    if isinstance(error, DatabaseUnavailable | DatabaseMisconfigured):
        log.warning("A request failed: %s", error)
        services().gate.report_failure(g.started)
        return error_response(
            503,
            "database_unavailable",
            "the database cannot be reached; what is served goes on, changes are not possible now",
            headers={"Retry-After": str(RETRY_UNAVAILABLE)},
        )
    return _unexpected(error)


def _unexpected(error: Exception) -> Response:
    log.error("A request failed unexpectedly", exc_info=error)
    return error_response(500, "internal_error", "an unexpected error; the log of this node has the details")

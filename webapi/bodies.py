"""Requests with a body: JSON, an object, at most 1 MB. Checked after the token and before the fields."""

from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from webapi.errors import FieldError, error_response

MOST_BYTES = 1_000_000
# Endpoints that read a body; the others ignore one.
WITH_BODY = frozenset({"auth.login", "auth.password", "proxy.create", "proxy.change", "proxy.validate"})


def register(app: Flask) -> None:
    """Install the check; after the one for tokens, since hooks run in order."""
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    app.before_request(_check)


def json_object() -> dict[str, Any]:
    """The request's body, once `_check` let it pass."""
    body: dict[str, Any] = request.get_json()
    return body


def _check() -> Response | None:
    if request.endpoint not in WITH_BODY or request.method == "OPTIONS":
        return None
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("the body must be JSON, with Content-Type: application/json")
    # A body without a length is cut off at the limit, silently; what is cut may not pass for the whole.
    if request.content_length is None and len(request.get_data(cache=True)) >= MOST_BYTES:
        raise RequestEntityTooLarge
    try:
        body = request.get_json()
    except BadRequest as exc:
        raise BadRequest("the body is not valid JSON") from exc
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    if not isinstance(body, dict):
        field = FieldError(field="body", message="must be a JSON object")
        return error_response(422, "validation_failed", "not valid: body", [field])
    return None

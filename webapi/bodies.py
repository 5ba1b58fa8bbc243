"""Requests with a body: JSON, an object, at most 1 MB. Checked after the token and before the fields."""

import json
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
    app.register_error_handler(RequestEntityTooLarge, _too_large)


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
        raise BadRequest(_why_not_json(request.get_data())) from exc
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    if not isinstance(body, dict):
        field = FieldError(field="body", message="must be a JSON object")
        return error_response(422, "validation_failed", "not valid: body", [field])
    return None


def _why_not_json(data: bytes) -> str:
    if not data.strip():
        return "the body is empty; it must be JSON"
    try:
        json.loads(data)
    except json.JSONDecodeError as exc:
        return f"the body is not valid JSON: line {exc.lineno}, column {exc.colno}: {exc.msg}"
    except UnicodeDecodeError as exc:
        return f"the body is not valid JSON: its byte {exc.start + 1} is not UTF-8 text"
    except ValueError:  # Python limits the digits of a number it converts
        return "the body is not valid JSON: a number in it has too many digits"
    return "the body is not valid JSON"


def _too_large(_: RequestEntityTooLarge) -> Response:
    return error_response(413, "body_too_large", f"the body is too large; the limit is {MOST_BYTES // 1_000_000} MB")

"""The OpenAPI document and its page, made from the same models that check requests and write responses."""

from functools import cache
from typing import Any

from flask import Blueprint, Flask, Response, redirect, url_for
from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, ConfigDict

from lyttle_ops import __version__
from webapi.errors import ErrorBody

TOKEN: list[dict[str, list[Any]]] = [{"access_token": []}]
REFRESH_TOKEN: list[dict[str, list[Any]]] = [{"refresh_token": []}]

_DESCRIPTION = """Control API of LyttleOps.

POST /auth/login gives an access token; send it as `Authorization: Bearer …`. A token from one node is good on all.
Every error has one shape: `{"error": {"code", "message", "fields": [{"field", "message"}]}}`.
Times are UTC in ISO 8601.
"""


class Query(BaseModel):
    """Parameters of a query string. The library asks for the schema on every request, and making it takes 2 ms."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    @cache
    def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]  # the arguments are pydantic's own
        return super().model_json_schema(*arguments, **options)


class API(OpenAPI):
    """A Flask application that describes itself in OpenAPI 3.1."""

    def generate_spec_json(self) -> None:
        super().generate_spec_json()  # type: ignore[no-untyped-call]  # the library's
        # The library adds a 422 of its own shape to every operation that names none; none of ours answers so.
        for path in self.spec_json["paths"].values():
            for operation in path.values():
                added = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
                if added.get("schema", {}).get("type") == "array":
                    del operation["responses"]["422"]
                if "description" in operation:  # it joins the lines of a docstring with <br/>
                    operation["description"] = operation["description"].replace("<br/>", "\n").strip()


def make_app(name: str) -> API:
    """The application without its endpoints."""
    return API(
        name,
        info=Info(title="LyttleOps", version=__version__, description=_DESCRIPTION),
        security_schemes={
            "access_token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            "refresh_token": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "the refresh token of the log-in; for POST /auth/refresh only",
            },
        },
        validation_error_model=ErrorBody,
        static_folder=None,
    )


def failures(*statuses: int) -> dict[Any, Any]:
    """The error responses of an endpoint, for its `responses`."""
    return dict.fromkeys((*statuses, 500), ErrorBody)


def reply(body: BaseModel, status: int = 200) -> Response:
    """`body` as JSON, written by the model that the document describes."""
    return Response(body.model_dump_json() + "\n", status, content_type="application/json")


def register(app: Flask) -> None:
    """Make /openapi lead to the page."""
    blueprint = Blueprint("docs", __name__)

    @blueprint.get("/openapi")
    def page() -> Any:
        return redirect(url_for("swagger.swagger"))

    app.register_blueprint(blueprint)
    app.after_request(_headers)


def _headers(response: Response) -> Response:
    headers = response.headers
    headers["Cache-Control"] = "no-store"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    if response.mimetype == "text/html":
        # Swagger's page starts itself with an inline script.
        policy = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
        headers["Content-Security-Policy"] = f"{policy}; img-src 'self' data:; frame-ancestors 'none'"
    else:
        headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
    return response

"""JSON Web Tokens (RFC 7519): HS256 under a key derived from the master key, so that all nodes accept them.

Every endpoint asks for an access token unless it is named public here; the check comes before anything of the
request is looked at. A token carries the user's name (sub), its session (sid), its own id (jti), and when it was
made and ends (iat, exp), nothing else. The session is looked up on each request, so an ended one is refused at
once on all nodes.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from flask import Flask, Response, g, request
from flask_jwt_extended import JWTManager, create_access_token, create_refresh_token, get_jwt, verify_jwt_in_request
from jwt.exceptions import InvalidTokenError, MissingRequiredClaimError

from lyttle_ops.accounts import Session, find_session
from webapi.errors import unauthenticated
from webapi.services import services

LEEWAY = 10  # seconds that the clocks of two nodes may differ
_ALGORITHM = "HS256"

# What answers without a token: log-in itself, health and metrics for the machinery, and the API's description.
PUBLIC = frozenset(
    {
        "auth.login",
        "health.live",
        "health.ready",
        "metrics.metrics",
        "docs.page",
        "openapi.doc_url",
        "openapi.openapi",
        "openapi.static",
        "swagger.swagger",
        "swagger.static",
        "swagger.oauth2-redirect",
    }
)
REFRESH = "auth.refresh"


def register(app: Flask, key: bytes) -> None:
    """Install authentication in front of every endpoint. `key` signs and checks."""
    app.config.update(
        JWT_SECRET_KEY=key,
        JWT_ALGORITHM=_ALGORITHM,
        JWT_DECODE_ALGORITHMS=[_ALGORITHM],  # "none" and others are refused whatever a token's header says
        JWT_DECODE_LEEWAY=LEEWAY,
        JWT_ENCODE_NBF=False,
        JWT_TOKEN_LOCATION=["headers"],  # never a URL or a cookie
        JWT_COOKIE_CSRF_PROTECT=False,  # no cookies, so no claim for them
    )
    manager = JWTManager(app)
    manager.token_in_blocklist_loader(_is_over)
    manager.unauthorized_loader(lambda message: unauthenticated("token_missing", message))
    manager.invalid_token_loader(lambda message: unauthenticated("token_invalid", message))
    manager.expired_token_loader(lambda _header, _claims: unauthenticated("token_expired", "the token has expired"))
    manager.revoked_token_loader(
        lambda _header, _claims: unauthenticated("session_ended", "the session is over; log in again")
    )
    app.before_request(_authenticate)


def issue_tokens(session: Session) -> dict[str, Any]:
    """An access token and the session's current refresh token; neither outlives the session."""
    left = session.expires_at - datetime.now(UTC)
    access = min(timedelta(seconds=services().settings.access_token_lifetime), left)
    claims = {"sid": str(session.id)}
    return {
        "access_token": create_access_token(session.username, expires_delta=access, additional_claims=claims),
        "refresh_token": create_refresh_token(
            session.username, expires_delta=left, additional_claims={**claims, "jti": str(session.refresh_id)}
        ),
        "token_type": "Bearer",
        "expires_in": max(0, int(access.total_seconds())),
        "session_expires_at": session.expires_at,
    }


def token_session_id() -> UUID:
    """The session of the request's token."""
    return UUID(get_jwt()["sid"])


def token_id() -> UUID:
    """The id of the request's token."""
    return UUID(get_jwt()["jti"])


def current_session() -> Session:
    """The good session that the request's access token belongs to."""
    session: Session = g.session
    return session


def _authenticate() -> Response | None:
    if request.endpoint is None or request.endpoint in PUBLIC:
        return None  # without an endpoint the answer is 404 or 405
    verify_jwt_in_request(refresh=request.endpoint == REFRESH)
    return None


def _is_over(_header: dict[str, Any], claims: dict[str, Any]) -> bool:
    """Called with the claims of each token whose signature is good; PyJWT checks exp only where there is one."""
    for name in ("exp", "iat", "jti", "sid", "sub"):
        if name not in claims:
            raise MissingRequiredClaimError(name)
    try:
        session_id, _ = UUID(str(claims["sid"])), UUID(str(claims["jti"]))
    except ValueError:
        raise InvalidTokenError("sid and jti must be UUIDs") from None
    if claims["type"] not in ("access", "refresh"):
        raise InvalidTokenError("type must be access or refresh")
    if claims["type"] == "refresh":
        return False  # rotating it checks it, and tells a copy from one that is merely old
    services().gate.check()
    with services().database.connection() as connection:
        g.session = find_session(connection, session_id)
    return g.session is None or g.session.username != claims["sub"]

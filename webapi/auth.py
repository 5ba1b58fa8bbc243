"""/auth: log in, refresh, log out, who am I, change the own password."""

from typing import Annotated

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from lyttle_ops import accounts
from lyttle_ops.accounts.passwords import LONGEST_PASSWORD, SHORTEST_PASSWORD
from webapi import tokens
from webapi.documents import REFRESH_TOKEN, TOKEN, failures, reply
from webapi.errors import FieldError, error_response
from webapi.services import client_address, services

blueprint = APIBlueprint("auth", __name__, url_prefix="/auth", abp_tags=[Tag(name="auth", description="log-in")])

# PostgreSQL's text cannot hold NUL, and a log line should not hold other control characters.
Username = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
Password = Annotated[str, StringConstraints(max_length=LONGEST_PASSWORD)]


class LoginBody(BaseModel):
    """Who logs in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    username: Username
    password: Password


class PasswordBody(BaseModel):
    """The own password, old and new."""

    model_config = ConfigDict(extra="forbid", strict=True)

    current_password: Password
    new_password: Annotated[Password, Field(min_length=SHORTEST_PASSWORD)]


class TokensBody(BaseModel):
    """Tokens of a session. Send the access token as `Authorization: Bearer …`."""

    access_token: str
    refresh_token: str = Field(description="good once; POST /auth/refresh answers with the next one")
    token_type: str = Field(examples=["Bearer"])
    expires_in: int = Field(description="seconds the access token is good for")
    session_expires_at: AwareDatetime = Field(description="after this a password is needed again")


class MeBody(BaseModel):
    """The user of the token."""

    username: str
    session_expires_at: AwareDatetime


@blueprint.post("/login", responses={200: TokensBody, **failures(400, 401, 413, 415, 422, 429, 503)})
def login(body: LoginBody) -> Response:
    """Log in with a user name and a password"""
    services().gate.check()
    session = accounts.log_in(
        services().database,
        body.username,
        body.password,
        client_address(request),
        services().settings.refresh_token_lifetime,
    )
    return _tokens(session)


@blueprint.post("/refresh", security=REFRESH_TOKEN, responses={200: TokensBody, **failures(401, 503)})
def refresh() -> Response:
    """New tokens for a refresh token

    Each refresh token is good once. One that comes a second time ends the session, since one of the two who
    have it is a thief.
    """
    services().gate.check()
    with services().database.connection() as connection:
        session = accounts.refresh_session(connection, tokens.token_session_id(), tokens.token_id())
    return _tokens(session)


@blueprint.post("/logout", security=TOKEN, responses={204: None, **failures(401, 503)})
def logout() -> Response:
    """End the session of the token"""
    with services().database.connection() as connection:
        accounts.revoke_session(connection, tokens.token_session_id())
    return Response(status=204)


@blueprint.get("/me", security=TOKEN, responses={200: MeBody, **failures(401, 503)})
def me() -> Response:
    """Who the token belongs to"""
    session = tokens.current_session()
    body = MeBody(username=session.username, session_expires_at=session.expires_at)
    return reply(body)


@blueprint.post("/password", security=TOKEN, responses={204: None, **failures(400, 401, 413, 415, 422, 429, 503)})
def password(body: PasswordBody) -> Response:
    """Change the own password

    Ends all of the user's sessions, this one too: log in again.
    """
    username = tokens.current_session().username
    try:
        accounts.authenticate(services().database, username, body.current_password, client_address(request))
    except accounts.InvalidCredentials:
        # Not 401: the token is good, and clients take a 401 for the end of it.
        field = FieldError(field="current_password", message="is not the current password")
        return error_response(422, "validation_failed", "not valid: current_password", [field])
    accounts.set_password(services().database, username, body.new_password)
    return Response(status=204)


def _tokens(session: accounts.Session) -> Response:
    return reply(TokensBody(**tokens.issue_tokens(session)))

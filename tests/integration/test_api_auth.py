"""Log-in, tokens and sessions over HTTP, on one node and between nodes."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import jwt
import pytest
from flask_jwt_extended import create_access_token

from lyttle_ops.accounts.throttle import MOST_PER_PAIR
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.db import Database
from tests.support.api import PASSWORD, USERNAME, Client, add_admin, application, code_of, fields_of
from webapi.tokens import LEEWAY

KEY = Keyring(bytes(range(32))).derive("jwt")


@pytest.fixture
def app(database: Database, database_url: str) -> Iterator[Any]:
    add_admin(database)
    with application(database_url) as app:
        yield app


@pytest.fixture
def other_app(database_url: str) -> Iterator[Any]:
    """Another node's API on the same database."""
    with application(database_url, NODE_NAME="node2") as app:
        yield app


@pytest.fixture
def client(app: Any) -> Client:
    return Client(app).log_in()


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def test_a_log_in_answers_with_tokens_that_say_who_asks(app: Any) -> None:
    client = Client(app)
    answer = client.post("/auth/login", {"username": USERNAME, "password": PASSWORD})
    assert answer.status_code == 200
    assert answer.json["token_type"] == "Bearer"
    assert answer.json["expires_in"] == 900
    me = client.get("/auth/me", token=answer.json["access_token"])
    assert me.json == {"username": USERNAME, "session_expires_at": answer.json["session_expires_at"]}
    assert me.json["session_expires_at"].endswith("Z")


def test_tokens_carry_no_more_than_they_must(client: Client) -> None:
    assert set(claims_of(client.access_token)) == {"sub", "sid", "jti", "iat", "exp", "type", "fresh"}


def test_a_token_from_one_node_is_good_on_all(client: Client, other_app: Any) -> None:
    assert Client(other_app).get("/auth/me", token=client.access_token).status_code == 200


def test_a_log_out_on_one_node_holds_on_all_at_once(client: Client, other_app: Any) -> None:
    other = Client(other_app)
    assert other.get("/auth/me", token=client.access_token).status_code == 200
    assert client.post("/auth/logout").status_code == 204
    answer = other.get("/auth/me", token=client.access_token)
    assert (answer.status_code, code_of(answer)) == (401, "session_ended")
    assert client.post("/auth/refresh", token=client.refresh_token).status_code == 401


def test_wrong_credentials_get_one_and_the_same_answer(app: Any) -> None:
    answers = set()
    for username, password in ((USERNAME, "wrong password"), ("nobody", PASSWORD), (USERNAME, "")):
        answer = Client(app).post("/auth/login", {"username": username, "password": password})
        assert (answer.status_code, code_of(answer)) == (401, "invalid_credentials")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        answers.add(answer.text)
    assert len(answers) == 1


def test_a_log_in_that_is_no_log_in_names_its_fields(app: Any) -> None:
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"username", "password"}),
        ({"username": 5, "password": None}, {"username", "password"}),
        ({"username": "a" * 65, "password": "b" * 1025}, {"username", "password"}),
        ({"username": "a\x00b", "password": PASSWORD}, {"username"}),
        ({"username": "", "password": PASSWORD}, {"username"}),
        ({"username": USERNAME, "password": PASSWORD, "admin": True}, {"admin"}),
        ({"username": "\ud800", "password": "\ud800"}, {"username", "password"}),
    ]
    for body, fields in cases:
        answer = Client(app).post("/auth/login", body)
        assert answer.status_code == 422
        assert set(fields_of(answer)) == fields


def test_an_expired_token_is_refused(app: Any, client: Client) -> None:
    with app.test_request_context():
        token = create_access_token(
            USERNAME,
            expires_delta=timedelta(seconds=-LEEWAY - 1),
            additional_claims={"sid": claims_of(client.access_token)["sid"]},
        )
    answer = client.get("/auth/me", token=token)
    assert (answer.status_code, code_of(answer)) == (401, "token_expired")


def test_an_access_token_lives_as_long_as_is_set_and_no_longer_than_its_session(
    database_url: str, app: Any, database: Database
) -> None:
    with application(database_url, ACCESS_TOKEN_LIFETIME="600", REFRESH_TOKEN_LIFETIME="300") as short:
        client = Client(short).log_in()
        access, refresh = claims_of(client.access_token), claims_of(client.refresh_token)
        assert access["exp"] - access["iat"] <= 300
        assert refresh["exp"] - refresh["iat"] <= 300
    # What the node's clock says is not the last word: PostgreSQL ends the session for all of them.
    with database.connection() as connection:
        connection.execute("UPDATE api_sessions SET expires_at = now()")
    assert code_of(Client(app).get("/auth/me", token=client.access_token)) == "session_ended"


def test_clocks_of_nodes_may_differ_by_some_seconds(client: Client) -> None:
    """A token made by a node whose clock is ahead is good on the others."""
    ahead = {**claims_of(client.access_token), "iat": int(time.time()) + LEEWAY - 2}
    assert client.get("/auth/me", token=jwt.encode(ahead, KEY, "HS256")).status_code == 200


def forged(client: Client) -> dict[str, str]:
    """Tokens that are each wrong in one way."""
    good = claims_of(client.access_token)

    def signed(**changes: Any) -> str:
        claims = {name: value for name, value in {**good, **changes}.items() if value is not None}
        return jwt.encode(claims, KEY, "HS256")

    return {
        "of another key": jwt.encode(good, b"x" * 32, "HS256"),
        "of no algorithm": jwt.encode(good, None, "none"),
        "of another algorithm": jwt.encode(good, KEY * 2, "HS512"),
        "without exp": signed(exp=None),
        "without iat": signed(iat=None),
        "without sid": signed(sid=None),
        "without sub": signed(sub=None),
        "without jti": signed(jti=None),
        "with a sid that is no UUID": signed(sid="'; --"),
        "with a sid of no session": signed(sid=str(uuid4())),
        "with exp that is no number": signed(exp="never"),
        "with exp as a list": signed(exp=[1]),
        "of another user": signed(sub="root"),
        "of another type": signed(type="admin"),
        "of a refresh": client.refresh_token,
        "cut off": client.access_token[:-3],
        "of nothing": "x",
        "of dots": "a.b.c",
        "of a list": jwt.encode(good, KEY, "HS256").split(".")[0] + ".W10." + "x",
    }


def test_a_token_that_is_wrong_in_any_way_is_refused(client: Client) -> None:
    for name, token in forged(client).items():
        answer = client.get("/auth/me", token=token)
        assert answer.status_code == 401, name
        assert code_of(answer) in ("token_invalid", "session_ended"), name


def test_a_header_without_a_token_is_refused(client: Client) -> None:
    for header in ("", "Bearer", "Basic YTpi", "Bearer a b", "bearer x", "Bearer ä"):
        answer = client.get("/auth/me", token="", headers={"Authorization": header} if header else {})
        assert answer.status_code == 401, header
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_token_in_the_url_or_a_cookie_counts_for_nothing(client: Client) -> None:
    """Both end up where tokens must not: in logs, and in requests that other sites cause."""
    client.http.set_cookie("access_token_cookie", client.access_token)
    assert client.get(f"/auth/me?jwt={client.access_token}", token="").status_code == 401


def test_a_refresh_replaces_both_tokens(client: Client) -> None:
    answer = client.post("/auth/refresh", token=client.refresh_token)
    assert answer.status_code == 200
    assert answer.json["refresh_token"] != client.refresh_token
    assert client.get("/auth/me", token=answer.json["access_token"]).status_code == 200
    assert client.get("/auth/me").status_code == 200  # the access token before is good until it expires
    assert client.post("/auth/refresh", token=answer.json["refresh_token"]).status_code == 200


def test_a_refresh_token_used_twice_ends_the_session_on_all_nodes(client: Client, other_app: Any) -> None:
    newest = client.post("/auth/refresh", token=client.refresh_token).json
    answer = Client(other_app).post("/auth/refresh", token=client.refresh_token)
    assert (answer.status_code, code_of(answer)) == (401, "session_ended")
    assert client.get("/auth/me", token=newest["access_token"]).status_code == 401
    assert client.post("/auth/refresh", token=newest["refresh_token"]).status_code == 401


def test_an_access_token_refreshes_nothing(client: Client) -> None:
    answer = client.post("/auth/refresh", token=client.access_token)
    assert (answer.status_code, code_of(answer)) == (401, "token_invalid")


def test_failed_log_ins_on_one_node_count_on_the_others(app: Any, other_app: Any) -> None:
    wrong = {"username": USERNAME, "password": "wrong password"}
    clients = [Client(app), Client(other_app)]
    for number in range(MOST_PER_PAIR):
        assert clients[number % 2].post("/auth/login", wrong).status_code == 401
    for client in clients:
        answer = client.post("/auth/login", {"username": USERNAME, "password": PASSWORD})
        assert (answer.status_code, code_of(answer)) == (429, "too_many_attempts")
        assert 0 < int(answer.headers["Retry-After"]) <= 900
    assert Client(app, "192.0.2.77").log_in()


def test_clients_behind_a_named_proxy_on_this_machine_have_limits_of_their_own(app: Any, database_url: str) -> None:
    """One bucket for all outsiders would let one of them lock out the rest."""
    with application(database_url, TRUSTED_LOAD_BALANCERS="127.0.0.0/8") as behind:
        local = Client(behind, "127.0.0.1")
        attempt = {"username": USERNAME, "password": "wrong password"}
        for _ in range(MOST_PER_PAIR):
            local.post("/auth/login", attempt, headers={"X-Forwarded-For": "203.0.113.1"})
        assert local.post("/auth/login", attempt, headers={"X-Forwarded-For": "203.0.113.1"}).status_code == 429
        assert local.post("/auth/login", attempt, headers={"X-Forwarded-For": "203.0.113.2"}).status_code == 401
        # What the client itself put in front of the proxy's word is not believed.
        claimed = {"X-Forwarded-For": "198.51.100.5, 203.0.113.1"}
        assert local.post("/auth/login", attempt, headers=claimed).status_code == 429


@pytest.mark.parametrize("address", ["203.0.113.9", "127.0.0.1", "::1", "::ffff:127.0.0.1", ""])
def test_a_client_cannot_choose_its_address(app: Any, address: str) -> None:
    """From elsewhere, from this machine, over a unix socket: a header is no way around the limits."""
    client = Client(app, address)
    for number in range(MOST_PER_PAIR):
        forged_address = {"X-Forwarded-For": f"198.51.100.{number}"}
        client.post("/auth/login", {"username": USERNAME, "password": "wrong password"}, headers=forged_address)
    assert client.post("/auth/login", {"username": USERNAME, "password": PASSWORD}).status_code == 429


def test_a_trusted_load_balancer_is_believed(app: Any, database_url: str) -> None:
    with application(database_url, TRUSTED_LOAD_BALANCERS="203.0.113.0/24") as behind:
        client = Client(behind, "203.0.113.9")
        wrong = {"username": USERNAME, "password": "wrong password"}
        for _ in range(MOST_PER_PAIR):
            client.post("/auth/login", wrong, headers={"X-Forwarded-For": "198.51.100.1"})
        assert client.post("/auth/login", wrong, headers={"X-Forwarded-For": "198.51.100.1"}).status_code == 429
        assert client.post("/auth/login", wrong, headers={"X-Forwarded-For": "198.51.100.2"}).status_code == 401


def test_a_new_password_ends_every_session_of_the_user(client: Client, other_app: Any) -> None:
    elsewhere = Client(other_app).log_in()
    change = {"current_password": PASSWORD, "new_password": "a new password"}
    assert client.post("/auth/password", change).status_code == 204
    assert client.get("/auth/me").status_code == elsewhere.get("/auth/me").status_code == 401
    client.log_in(password="a new password")


def test_a_new_password_needs_the_current_one_within_the_limits(client: Client) -> None:
    change = {"current_password": "wrong password", "new_password": "a new password"}
    for _ in range(MOST_PER_PAIR):
        answer = client.post("/auth/password", change)
        assert answer.status_code == 422
        assert set(fields_of(answer)) == {"current_password"}
    assert client.post("/auth/password", change).status_code == 429
    assert client.get("/auth/me").status_code == 200  # a wrong guess is not the end of the session


def test_a_short_new_password_is_refused(client: Client) -> None:
    answer = client.post("/auth/password", {"current_password": PASSWORD, "new_password": "short"})
    assert answer.status_code == 422
    assert set(fields_of(answer)) == {"new_password"}

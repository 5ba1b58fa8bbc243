"""Users, log-ins and sessions in a real PostgreSQL."""

import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from argon2 import PasswordHasher

from lyttle_ops.accounts import (
    InvalidCredentials,
    LastUser,
    PasswordRefused,
    SessionEnded,
    TooManyAttempts,
    UserExists,
    UsernameRefused,
    UserNotFound,
    authenticate,
    create_user,
    delete_user,
    ensure_first_admin,
    find_session,
    list_users,
    log_in,
    open_session,
    prune,
    refresh_session,
    revoke_session,
    session_is_valid,
    set_password,
)
from lyttle_ops.accounts.throttle import MOST_PER_ADDRESS, MOST_PER_PAIR, MOST_PER_USER, WINDOW
from lyttle_ops.db import Database

PASSWORD = "correct horse battery"
HOME = "192.0.2.1"


@pytest.fixture
def admin(database: Database) -> Database:
    """The database with one user, admin."""
    create_user(database, "admin", PASSWORD)
    return database


def fail(database: Database, username: str = "admin", address: str = HOME, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(InvalidCredentials):
            authenticate(database, username, "wrong password", address)


def count_failures(database: Database, bucket: str, times: int) -> None:
    """As if `times` log-ins had failed; without their hashing."""
    with database.connection() as connection:
        connection.execute("INSERT INTO login_attempts (bucket) SELECT %s FROM generate_series(1, %s)", (bucket, times))


def let_pass(database: Database, seconds: int) -> None:
    with database.connection() as connection:
        connection.execute("UPDATE login_attempts SET at = at - make_interval(secs => %s)", (seconds,))


def test_ten_nodes_at_once_make_one_admin_and_one_password_file(database: Database, tmp_path: Path) -> None:
    """Each with a disk of its own; only the winner's file is left, and its password is the one that works."""
    files = [tmp_path / f"node{number}" / "admin-password" for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        made = list(pool.map(lambda file: ensure_first_admin(database, "admin", None, file), files))
    assert sum(made) == 1
    left = [file for file in files if file.exists()]
    assert left == [files[made.index(True)]]
    assert stat.S_IMODE(left[0].stat().st_mode) == 0o600
    assert list(left[0].parent.iterdir()) == left
    assert authenticate(database, "admin", left[0].read_text().strip(), HOME).username == "admin"


def test_admins_of_different_names_at_once_are_still_one(database: Database, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: ensure_first_admin(database, f"admin{n}", "pass word " * 2, tmp_path / "f"), range(6)))
    assert len(list_users(database)) == 1
    assert not (tmp_path / "f").exists()


def test_the_generated_password_is_in_no_log(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ensure_first_admin(database, "admin", None, tmp_path / "admin-password")
    assert str(tmp_path / "admin-password") in caplog.text
    assert (tmp_path / "admin-password").read_text().strip() not in caplog.text


def test_an_existing_user_is_left_alone_and_no_file_is_written(admin: Database, tmp_path: Path) -> None:
    assert not ensure_first_admin(admin, "admin", "another password", tmp_path / "file")
    assert not ensure_first_admin(admin, "other", None, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert authenticate(admin, "admin", PASSWORD, HOME)


def test_without_a_place_for_its_password_no_user_is_made(database: Database, tmp_path: Path) -> None:
    """Else there would be an administrator whose password nobody has."""
    (tmp_path / "occupied").write_text("")
    with pytest.raises(OSError, match="occupied"):
        ensure_first_admin(database, "admin", None, tmp_path / "occupied" / "admin-password")
    assert list_users(database) == []


def test_users_are_made_listed_and_deleted(admin: Database) -> None:
    with pytest.raises(UserExists):
        create_user(admin, "admin", PASSWORD)
    with pytest.raises(PasswordRefused):
        create_user(admin, "other", "short")
    create_user(admin, "other", PASSWORD)
    assert [user["username"] for user in list_users(admin)] == ["admin", "other"]
    assert "password_hash" not in list_users(admin)[0]
    delete_user(admin, "other")
    with pytest.raises(UserNotFound):
        delete_user(admin, "other")
    create_user(admin, "o.ther+2@example.com", PASSWORD)
    delete_user(admin, "o.ther+2@example.com")
    with pytest.raises(UserNotFound):
        set_password(admin, "other", PASSWORD)


@pytest.mark.parametrize("name", ["", "b ob;x", "a" * 65, "-rf", "ab\n", "a/b", "\x00", "bücher"])
def test_a_name_that_would_be_trouble_in_a_log_or_a_shell_is_refused(database: Database, name: str) -> None:
    with pytest.raises(UsernameRefused, match="letters, digits and"):
        create_user(database, name, PASSWORD)
    assert list_users(database) == []


def test_the_last_user_is_not_removed(admin: Database) -> None:
    with pytest.raises(LastUser, match="add another first"):
        delete_user(admin, "admin")
    assert authenticate(admin, "admin", PASSWORD, HOME)


def test_users_removed_at_once_leave_one(admin: Database) -> None:
    """Each of two removals would see the other's user still there."""
    names = ["admin", *(f"user{number}" for number in range(5))]
    for name in names[1:]:
        create_user(admin, name, PASSWORD)

    def remove(name: str) -> bool:
        try:
            delete_user(admin, name)
        except LastUser:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(remove, names)) == 5
    assert len(list_users(admin)) == 1


def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(admin: Database) -> None:
    answers = []
    for username, password in (("admin", "wrong password"), ("nobody", PASSWORD), ("Admin", PASSWORD)):
        with pytest.raises(InvalidCredentials) as caught:
            authenticate(admin, username, password, HOME)
        answers.append(str(caught.value))
    assert len(set(answers)) == 1


def test_neither_passwords_nor_unknown_names_are_logged(admin: Database, caplog: pytest.LogCaptureFixture) -> None:
    """An unknown name may be a password typed into the wrong field."""
    caplog.set_level(logging.DEBUG)
    fail(admin)
    fail(admin, "my-secret-password")
    assert "admin" in caplog.text
    assert HOME in caplog.text
    assert "my-secret-password" not in caplog.text
    assert "wrong password" not in caplog.text


def test_a_hash_of_an_older_cost_is_replaced_by_a_log_in(admin: Database) -> None:
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    with admin.connection() as connection:
        connection.execute("UPDATE users SET password_hash = %s", (cheap,))
    session = log_in(admin, "admin", PASSWORD, HOME, 60)
    with admin.connection() as connection:
        row = connection.execute("SELECT password_hash FROM users").fetchone()
        assert row
        assert row["password_hash"] != cheap
        assert session_is_valid(connection, session.id)
    assert authenticate(admin, "admin", PASSWORD, HOME)


def test_five_failures_of_a_user_from_an_address_block_that_pair_only(admin: Database) -> None:
    create_user(admin, "other", PASSWORD)
    fail(admin, times=MOST_PER_PAIR)
    with pytest.raises(TooManyAttempts) as caught:
        authenticate(admin, "admin", PASSWORD, HOME)  # the right one too, or guessing could go on
    assert WINDOW - 30 < caught.value.retry_after <= WINDOW
    assert authenticate(admin, "admin", PASSWORD, "192.0.2.2")
    assert authenticate(admin, "other", PASSWORD, HOME)


def test_a_block_ends_by_itself_and_refused_attempts_do_not_prolong_it(admin: Database) -> None:
    fail(admin, times=MOST_PER_PAIR)
    let_pass(admin, WINDOW - 10)
    for _ in range(5):
        with pytest.raises(TooManyAttempts) as caught:
            authenticate(admin, "admin", PASSWORD, HOME)
        assert caught.value.retry_after <= 10
    let_pass(admin, 10)
    assert authenticate(admin, "admin", PASSWORD, HOME)


def test_a_success_forgets_the_failures_of_the_pair(admin: Database) -> None:
    for _ in range(3):
        fail(admin, times=MOST_PER_PAIR - 1)
        authenticate(admin, "admin", PASSWORD, HOME)


def test_an_unknown_user_is_blocked_like_a_known_one(admin: Database) -> None:
    """Else the block would tell which names exist."""
    fail(admin, "nobody", times=MOST_PER_PAIR)
    with pytest.raises(TooManyAttempts):
        authenticate(admin, "nobody", PASSWORD, HOME)


def test_an_address_that_tries_many_users_is_blocked(admin: Database) -> None:
    count_failures(admin, f"address:{HOME}", MOST_PER_ADDRESS - 1)
    fail(admin, "nobody")
    with pytest.raises(TooManyAttempts):
        authenticate(admin, "admin", PASSWORD, HOME)
    assert authenticate(admin, "admin", PASSWORD, "192.0.2.2")


def test_an_attack_on_one_user_from_many_addresses_is_stopped_without_locking_the_user_out(admin: Database) -> None:
    """The one at work is known from where he works; a stranger's address gets no further."""
    authenticate(admin, "admin", PASSWORD, HOME)
    for number in range(MOST_PER_USER // MOST_PER_PAIR):
        fail(admin, address=f"198.51.100.{number}", times=MOST_PER_PAIR)
    with pytest.raises(TooManyAttempts):
        authenticate(admin, "admin", PASSWORD, "198.51.100.99")
    assert authenticate(admin, "admin", PASSWORD, HOME)


def test_a_new_password_from_the_command_line_ends_a_block(admin: Database) -> None:
    """The way out for somebody who is known from nowhere."""
    count_failures(admin, "user:admin", MOST_PER_USER)
    with pytest.raises(TooManyAttempts):
        authenticate(admin, "admin", PASSWORD, HOME)
    set_password(admin, "admin", "a new password")
    assert authenticate(admin, "admin", "a new password", HOME)


def test_a_new_password_forgets_what_its_user_mistyped_from_every_address_and_nobody_elses(admin: Database) -> None:
    create_user(admin, "other", PASSWORD)
    places = (HOME, "2001:db8::1", "")
    for place in places:
        fail(admin, address=place, times=MOST_PER_PAIR)
    fail(admin, "other", times=MOST_PER_PAIR)
    with pytest.raises(TooManyAttempts):
        authenticate(admin, "admin", PASSWORD, HOME)
    set_password(admin, "admin", "a new password")
    for place in places:
        assert authenticate(admin, "admin", "a new password", place)
    with pytest.raises(TooManyAttempts):
        authenticate(admin, "other", PASSWORD, HOME)


def test_many_right_passwords_at_once_are_never_refused(admin: Database) -> None:
    """Attempts count when they fail, not when they begin. Four at once: two are checked, two wait for that."""
    with ThreadPoolExecutor(4) as pool:
        sessions = list(pool.map(lambda _: log_in(admin, "admin", PASSWORD, HOME, 60), range(24)))
    assert len({session.id for session in sessions}) == 24


def test_a_session_is_good_until_it_is_revoked_or_over(admin: Database) -> None:
    session = log_in(admin, "admin", PASSWORD, HOME, 60)
    with admin.connection() as connection:
        assert find_session(connection, session.id) == session
        assert not session_is_valid(connection, uuid4())
        assert revoke_session(connection, session.id) == "admin"
        assert revoke_session(connection, session.id) is None
        assert not session_is_valid(connection, session.id)
    session = log_in(admin, "admin", PASSWORD, HOME, 60)
    with admin.connection() as connection:
        connection.execute("UPDATE api_sessions SET expires_at = now() WHERE id = %s", (session.id,))
        assert not session_is_valid(connection, session.id)
        with pytest.raises(SessionEnded):
            refresh_session(connection, session.id, session.refresh_id)


def test_a_refresh_token_is_good_once_and_its_second_use_ends_the_session(admin: Database) -> None:
    session = log_in(admin, "admin", PASSWORD, HOME, 60)
    with admin.connection() as connection:
        second = refresh_session(connection, session.id, session.refresh_id)
        assert second.refresh_id != session.refresh_id
        assert second.expires_at == session.expires_at  # refreshing does not prolong a log-in
        with pytest.raises(SessionEnded):
            refresh_session(connection, session.id, session.refresh_id)
        assert not session_is_valid(connection, session.id)
        with pytest.raises(SessionEnded):
            refresh_session(connection, session.id, second.refresh_id)


def test_of_two_uses_of_a_refresh_token_at_once_at_most_one_gets_the_next(admin: Database) -> None:
    session = log_in(admin, "admin", PASSWORD, HOME, 60)

    def use(_: int) -> bool:
        try:
            with admin.connection() as connection:
                refresh_session(connection, session.id, session.refresh_id)
        except SessionEnded:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(use, range(4))) == 1
    with admin.connection() as connection:
        assert not session_is_valid(connection, session.id)


def test_a_new_password_ends_all_sessions_and_the_old_password(admin: Database) -> None:
    sessions = [log_in(admin, "admin", PASSWORD, HOME, 60) for _ in range(2)]
    set_password(admin, "admin", "a new password")
    with admin.connection() as connection:
        assert not any(session_is_valid(connection, session.id) for session in sessions)
    fail(admin)
    with pytest.raises(InvalidCredentials):
        authenticate(admin, "admin", PASSWORD, HOME)


def test_no_session_opens_on_a_password_that_changed_meanwhile(admin: Database) -> None:
    user = authenticate(admin, "admin", PASSWORD, HOME)
    set_password(admin, "admin", "a new password")
    with pytest.raises(InvalidCredentials):
        open_session(admin, user, 60)


def test_a_session_that_opens_while_the_password_changes_does_not_survive_it(admin: Database) -> None:
    """Whichever commits first: the log-in waits for the change, or the change sees the session."""
    for number in range(5):
        old, new = (PASSWORD, "a new password") if number % 2 == 0 else ("a new password", PASSWORD)
        user = authenticate(admin, "admin", old, HOME)
        with ThreadPoolExecutor(2) as pool:
            opening = pool.submit(open_session, admin, user, 60)
            pool.submit(set_password, admin, "admin", new).result()
            if opening.exception() is None:
                with admin.connection() as connection:
                    assert not session_is_valid(connection, opening.result().id)
            else:
                assert isinstance(opening.exception(), InvalidCredentials)


def test_deleting_a_user_ends_the_sessions(admin: Database) -> None:
    session = log_in(admin, "admin", PASSWORD, HOME, 60)
    create_user(admin, "other", PASSWORD)
    delete_user(admin, "admin")
    with admin.connection() as connection:
        assert not session_is_valid(connection, session.id)


def test_pruning_removes_what_nothing_looks_at_and_keeps_the_rest(admin: Database) -> None:
    fail(admin)
    session = log_in(admin, "admin", PASSWORD, "192.0.2.9", 60)
    fail(admin)
    with admin.connection() as connection:
        assert prune(connection) == 0
        connection.execute("UPDATE login_attempts SET at = now() - interval '1 day'")
        connection.execute("UPDATE api_sessions SET expires_at = now() - interval '8 days'")
        assert prune(connection) > 0
        left = connection.execute("SELECT bucket FROM login_attempts").fetchall()
        assert [row["bucket"] for row in left] == ["known:192.0.2.9 admin"]  # an address stays known for 30 days
        assert find_session(connection, session.id) is None
        assert connection.execute("SELECT FROM api_sessions").fetchall() == []

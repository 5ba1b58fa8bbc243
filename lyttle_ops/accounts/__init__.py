"""Users, their passwords and sessions, and the limits on log-ins."""

from lyttle_ops.accounts.passwords import PasswordRefused
from lyttle_ops.accounts.sessions import (
    InvalidCredentials,
    Session,
    SessionEnded,
    User,
    authenticate,
    find_session,
    log_in,
    open_session,
    prune,
    refresh_session,
    revoke_session,
    session_is_valid,
)
from lyttle_ops.accounts.store import (
    LastUser,
    UserExists,
    UsernameRefused,
    UserNotFound,
    check_username,
    create_user,
    delete_user,
    ensure_first_admin,
    list_users,
    set_password,
)
from lyttle_ops.accounts.throttle import TooManyAttempts

__all__ = [
    "InvalidCredentials",
    "LastUser",
    "PasswordRefused",
    "Session",
    "SessionEnded",
    "TooManyAttempts",
    "User",
    "UserExists",
    "UserNotFound",
    "UsernameRefused",
    "authenticate",
    "check_username",
    "create_user",
    "delete_user",
    "ensure_first_admin",
    "find_session",
    "list_users",
    "log_in",
    "open_session",
    "prune",
    "refresh_session",
    "revoke_session",
    "session_is_valid",
    "set_password",
]

"""PostgreSQL: connections, error translation, named SQL, migrations."""

from lyttle_ops.db.connection import Database
from lyttle_ops.db.errors import (
    DatabaseBusy,
    DatabaseError,
    DatabaseMisconfigured,
    DatabaseUnavailable,
    LoginRefused,
    UniqueConflict,
)
from lyttle_ops.db.queries import load_queries

__all__ = [
    "Database",
    "DatabaseBusy",
    "DatabaseError",
    "DatabaseMisconfigured",
    "DatabaseUnavailable",
    "LoginRefused",
    "UniqueConflict",
    "load_queries",
]

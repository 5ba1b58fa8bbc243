"""Alembic's entry: the connection comes from lyttle_ops.db.migrate, never from a URL."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()

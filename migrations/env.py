"""Alembic's entry point: run the migrations on the connection of `broker.store.migration`, or print SQL."""

from alembic import context

# `alembic upgrade head --sql` has no connection. With another paramstyle, it would double each `%`.
context.configure(
    connection=context.config.attributes.get("connection"),
    dialect_name="postgresql",
    dialect_opts={"paramstyle": "named"},
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()

"""Alembic's entry: run the migrations on the connection of `broker.store.migration`, or print them as SQL."""

from alembic import context

# Without a connection: `alembic upgrade head --sql`. With another paramstyle, it would double each `%`.
context.configure(
    connection=context.config.attributes.get("connection"),
    dialect_name="postgresql",
    dialect_opts={"paramstyle": "named"},
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()

"""How Alembic reaches the database: over the connection that `broker.store.migration` hands it."""

from alembic import context

connection = context.config.attributes["connection"]

context.configure(connection=connection, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()

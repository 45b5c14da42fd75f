"""Alembic's entry: runs the migrations on the connection that `upgrade` opened."""

from alembic import context

from eventstore.migrations import is_ours
from eventstore.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=is_ours,
)
with context.begin_transaction():
    context.run_migrations()

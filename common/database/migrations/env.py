"""How does Alembic run our migrations? On the connection of ``common/database/migrate.py``, in its transaction."""

from alembic import context

from common.database.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # For SQLite too: the transaction has already begun.
)
context.run_migrations()

"""How does Alembic run our migrations? On the connection that ``common/database/migrate.py`` hands it, in its transaction."""

from alembic import context

from common.database.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # SQLite's too: the transaction has begun already.
)
context.run_migrations()

"""How does the database fail? Apart from the drivers, so that to expect it costs no process an import of SQLAlchemy."""


class DatabaseUnavailable(Exception):
    """The database did not answer, would not now, or has no tables for us; the text says what to do where we know it."""


class RowRefused(Exception):
    """The database is there, and will not have this data."""

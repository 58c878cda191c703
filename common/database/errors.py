"""How can the database fail? The errors are in a separate file, so that catching them does not import SQLAlchemy."""


class DatabaseUnavailable(Exception):
    """The database did not answer, refused for now, or has no tables of ours. Where we know what to do, the text says it."""


class RowRefused(Exception):
    """The database is available, but does not accept this data."""


class Busy(Exception):
    """Others keep changing the same rows."""

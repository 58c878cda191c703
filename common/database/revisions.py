"""Which revision does this version need, and which one does an SQLite file have?

Separate from ``migrate.py``, so that a check does not import SQLAlchemy: the import takes longer than a command.
"""

import contextlib
import os
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

from common.database.errors import DatabaseUnavailable

FOLDER = Path(__file__).parent / "migrations"
HEAD = max(path.name[:4] for path in (FOLDER / "versions").glob("[0-9]*.py"))


def is_sqlite_url(url: str) -> bool:
    return url.startswith("sqlite")


def sqlite_revision(url: str) -> str | None:
    """Return the revision of an SQLite file. None: it has no tables of ours, or does not exist. No file is created.

    Raises:
        DatabaseUnavailable: the file cannot be read, or could not be created.
    """
    file = Path(urlsplit(url).path[1:])
    if not file.exists():
        if os.access(file.parent, os.W_OK):
            return None
        raise DatabaseUnavailable(f"there is no folder {file.parent.absolute()} that this process may write to")
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if tables else None
    except sqlite3.Error as error:
        raise DatabaseUnavailable(f"{type(error).__name__}: {error}") from error
    return str(row[0]) if row else None

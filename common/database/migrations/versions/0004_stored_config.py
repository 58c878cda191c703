"""Which providers and routes are managed at run time? Revision 0004.

The row of the kind ``revision`` counts the changes. The others are encrypted as a whole: common/live/stored_records.py.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    table = op.create_table(
        "stored_config",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("format", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(table, [{"kind": "revision", "name": "", "format": 1, "sealed": b"", "updated_ms": 0}])


def downgrade() -> None:
    op.drop_table("stored_config")

"""What did answers from the cache save? Revision 0003.

Rows of before have no such figure: nothing was cached.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("ledger", sa.Column("saved_nano_usd", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("ledger", "saved_nano_usd")

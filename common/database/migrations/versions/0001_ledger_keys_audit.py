"""The ledger, the managed keys and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "managed_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("previous_hash", sa.String(64)),
        sa.Column("previous_until_ms", sa.BigInteger),
        sa.Column("access", sa.JSON, nullable=False),
        sa.Column("is_disabled", sa.Boolean, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_managed_keys_tenant", "managed_keys", ["tenant"])
    op.create_index("ix_managed_keys_updated_ms", "managed_keys", ["updated_ms"])

    op.create_table(
        "ledger",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(255), nullable=False),
        sa.Column("end_user", sa.String(255)),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("dialect", sa.String(64), nullable=False),
        sa.Column("operation", sa.String(64), nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("provider", sa.String(64)),
        sa.Column("upstream_model", sa.String(255)),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("error_kind", sa.String(64)),
        sa.Column("error_code", sa.String(255)),
        sa.Column("finish_reason", sa.String(64)),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("cache_read_tokens", sa.BigInteger),
        sa.Column("cache_write_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
        sa.Column("is_estimated", sa.Boolean, nullable=False),
        sa.Column("is_partial", sa.Boolean, nullable=False),
        sa.Column("has_brought_key", sa.Boolean, nullable=False),
        sa.Column("cost_nano_usd", sa.BigInteger),
        sa.Column("input_cost_nano_usd", sa.BigInteger),
        sa.Column("cache", sa.String(64), nullable=False),
        sa.Column("answered_by", sa.String(64)),
        sa.Column("tries", sa.BigInteger, nullable=False),
        sa.Column("continuations", sa.BigInteger, nullable=False),
        sa.Column("queue_wait_ms", sa.BigInteger),
        sa.Column("ttft_ms", sa.BigInteger),
        sa.Column("duration_ms", sa.BigInteger),
    )
    op.create_index("ix_ledger_ended_ms", "ledger", ["ended_ms"])
    op.create_index("ledger_by_owner", "ledger", ["owner", "ended_ms"])
    op.create_index("ledger_by_tenant", "ledger", ["tenant", "ended_ms"])

    op.create_table(
        "audit",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_audit_owner", "audit", ["owner"])
    op.create_index("ix_audit_expires_ms", "audit", ["expires_ms"])

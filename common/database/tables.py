"""Which tables does the database have?

They hold what must outlive Redis: the ledger (one row per generation, and one per attempt if there were several), the managed
keys, the providers and routes that are managed at run time, and the audit log. Money is in whole nano-dollars (1e-9 USD), which
both databases add exactly. Times are UTC in milliseconds since 1970. A change here needs a migration: see docs/ledger.md.
"""

from typing import Any

from sqlalchemy import BigInteger, Boolean, Index, LargeBinary, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import JSON

_Id = String(64)
_Name = String(255)
_Json = JSON(none_as_null=True)


class Base(DeclarativeBase):
    pass


class ManagedKey(Base):
    """A key that ``sluice keys`` or the admin API created. It does not contain the key: ``secret_hash`` is a SHA-256."""

    __tablename__ = "managed_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(_Name)
    tenant: Mapped[str] = mapped_column(_Id, index=True)
    secret_hash: Mapped[str] = mapped_column(_Id)
    # During a rotation's overlap the previous secret is valid too.
    previous_hash: Mapped[str | None] = mapped_column(_Id)
    previous_until_ms: Mapped[int | None] = mapped_column(BigInteger)
    access: Mapped[dict[str, Any]] = mapped_column(JSON)
    is_disabled: Mapped[bool] = mapped_column(Boolean, default=False)
    expires_ms: Mapped[int | None] = mapped_column(BigInteger)
    created_ms: Mapped[int] = mapped_column(BigInteger)
    updated_ms: Mapped[int] = mapped_column(BigInteger, index=True)


class StoredRow(Base):
    """A provider or a route that is managed at run time, encrypted as a whole: ``common/live/stored_records.py``.

    The row of the kind ``revision`` has the revision of all others in ``updated_ms``.
    """

    __tablename__ = "stored_config"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(_Name, primary_key=True)
    format: Mapped[int] = mapped_column(BigInteger)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    updated_ms: Mapped[int] = mapped_column(BigInteger)


class LedgerRow(Base):
    """One generation. Token counts None: the usage is not known. ``cost_nano_usd`` None: the price is not known."""

    __tablename__ = "ledger"
    __table_args__ = (
        Index("ledger_by_owner", "owner", "ended_ms"),
        Index("ledger_by_tenant", "tenant", "ended_ms"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    owner: Mapped[str] = mapped_column(_Id)
    tenant: Mapped[str] = mapped_column(_Name)
    end_user: Mapped[str | None] = mapped_column(_Name)
    request_id: Mapped[str] = mapped_column(String(128))
    dialect: Mapped[str] = mapped_column(_Id)
    operation: Mapped[str] = mapped_column(_Id)
    stream: Mapped[bool] = mapped_column(Boolean)
    model: Mapped[str] = mapped_column(_Name)
    provider: Mapped[str | None] = mapped_column(_Id)
    upstream_model: Mapped[str | None] = mapped_column(_Name)
    created_ms: Mapped[int] = mapped_column(BigInteger)
    ended_ms: Mapped[int] = mapped_column(BigInteger, index=True)
    outcome: Mapped[str] = mapped_column(_Id)  # completed, failed or cancelled
    error_kind: Mapped[str | None] = mapped_column(_Id)
    error_code: Mapped[str | None] = mapped_column(_Name)
    finish_reason: Mapped[str | None] = mapped_column(_Id)
    input_tokens: Mapped[int | None] = mapped_column(BigInteger)
    output_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cache_read_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cache_write_tokens: Mapped[int | None] = mapped_column(BigInteger)
    reasoning_tokens: Mapped[int | None] = mapped_column(BigInteger)
    is_estimated: Mapped[bool] = mapped_column(Boolean)  # Some of the figures are our estimates, not the provider's.
    is_partial: Mapped[bool] = mapped_column(Boolean)  # The answer broke off after its first token.
    has_brought_key: Mapped[bool] = mapped_column(Boolean)  # Bring-your-own-key: the client pays the provider.
    cost_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    input_cost_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    cache: Mapped[str] = mapped_column(_Id)  # off, bypass, miss, hit or join
    answered_by: Mapped[str | None] = mapped_column(_Id)  # The generation whose answer was used for a hit or a join.
    saved_nano_usd: Mapped[int | None] = mapped_column(BigInteger)  # What that generation cost.
    tries: Mapped[int] = mapped_column(BigInteger)
    continuations: Mapped[int] = mapped_column(BigInteger)
    queue_wait_ms: Mapped[int | None] = mapped_column(BigInteger)
    ttft_ms: Mapped[int | None] = mapped_column(BigInteger)
    duration_ms: Mapped[int | None] = mapped_column(BigInteger)
    # What else the price depends on: the model that answered, the service tier, separately priced parts, paid calls.
    details: Mapped[dict[str, Any] | None] = mapped_column(_Json)


class LedgerAttempt(Base):
    """One upstream call of a generation that needed several. The ledger's row has their sum.

    A generation with a single call has no rows here: its ledger row has everything.
    """

    __tablename__ = "ledger_attempts"

    generation_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    provider: Mapped[str | None] = mapped_column(_Id)
    upstream_model: Mapped[str | None] = mapped_column(_Name)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger)
    is_estimated: Mapped[bool] = mapped_column(Boolean)
    has_brought_key: Mapped[bool] = mapped_column(Boolean)
    cost_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    input_cost_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    details: Mapped[dict[str, Any] | None] = mapped_column(_Json)


class AuditRow(Base):
    """A request and its answer, redacted, then encrypted with a key derived from ``SLUICE_SECRET``."""

    __tablename__ = "audit"

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    owner: Mapped[str] = mapped_column(_Id, index=True)
    created_ms: Mapped[int] = mapped_column(BigInteger)
    expires_ms: Mapped[int] = mapped_column(BigInteger, index=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)

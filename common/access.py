"""What may somebody do, and how much of it?

``Access`` is what a key, or a tenant, is allowed; a principal has one of each, and both must allow what it asks. Settings
and the database hold the same model, so that a key of either kind is the same thing to the rest of the code.
Who asks is found by ``api.auth``; that it may is checked by ``api.admission``, the counters by the enqueue script.
"""

from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(frozen=True, extra="forbid")
Names = tuple[Annotated[str, Field(min_length=1, max_length=200)], ...]


class Limits(BaseModel):
    """Most of each in ``window_s`` seconds, and at a time; None: no limit. Tokens are those of prompts and answers together."""

    model_config = _STRICT

    requests: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1)
    window_s: float = Field(60, ge=1, le=86_400)

    @property
    def is_set(self) -> bool:
        return (self.requests or self.tokens or self.concurrent) is not None


class Budget(BaseModel):
    """Most US dollars per day and per month, both of UTC; None: no limit."""

    model_config = _STRICT

    day_usd: Decimal | None = Field(None, ge=0)
    month_usd: Decimal | None = Field(None, ge=0)


class Mode(StrEnum):
    OFF = "off"
    LOG = "log"
    BLOCK = "block"


class GuardrailPolicy(BaseModel):
    """What is done about each kind of text: nothing, a line in the log and a metric, or a refusal.

    For ``pii`` and ``sanitize``, block means that the text is replaced, not refused.
    """

    model_config = _STRICT

    injection: Mode = Mode.OFF
    patterns: Mode = Mode.OFF
    pii: Mode = Mode.OFF
    sanitize: Mode = Mode.OFF
    size: Mode = Mode.OFF
    custom: Mode = Mode.OFF

    @property
    def is_off(self) -> bool:
        return all(mode is Mode.OFF for _, mode in self)


class Access(BaseModel):
    """Names may hold ``*`` and ``?``; None allows all. ``models`` are the names that clients send, or ``provider/model``."""

    model_config = _STRICT

    models: Names | None = None
    providers: Names | None = None
    dialects: Names | None = None
    cors_origins: tuple[str, ...] | None = None
    disconnect: Annotated[str, Field(pattern=r"^(stop|detach|grace=[0-9]{1,4})$")] | None = None
    limits: Limits = Limits()
    budget: Budget = Budget()
    guardrails: GuardrailPolicy | None = None
    audit: bool = False

    def allows(self, what: Literal["models", "providers", "dialects"], names: Collection[str]) -> bool:
        """Return whether one of the names that a thing goes by is allowed."""
        allowed: Names | None = getattr(self, what)
        return allowed is None or any(fnmatchcase(name, pattern) for pattern in allowed for name in names)


ALL = Access()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``id`` names the owner of generations and never reveals a key; ``tenant`` shares queue turns and budgets.

    ``end_user`` is who the key's holder asks for, where a token says so: a request's own ``user`` is weaker.
    """

    id: str
    tenant: str = ""  # Its own id, where nobody says otherwise.
    end_user: str | None = None
    access: Access = ALL
    tenant_access: Access = ALL
    scopes: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not self.tenant:
            object.__setattr__(self, "tenant", self.id)

    def allows(self, what: Literal["models", "providers", "dialects"], names: Collection[str]) -> bool:
        return self.access.allows(what, names) and self.tenant_access.allows(what, names)

    @property
    def guardrails(self) -> GuardrailPolicy | None:
        return self.access.guardrails or self.tenant_access.guardrails

    @property
    def is_audited(self) -> bool:
        return self.access.audit or self.tenant_access.audit

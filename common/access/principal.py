"""What may a principal do, and how much of it?

``Access`` says what a key or a tenant is allowed. A principal has one of each, and both must allow a request. Settings and the
database use the same model, so the rest of the code does not distinguish the two kinds of keys. ``api.auth.authenticator``
identifies the principal, ``api.auth.permissions`` and ``api.intake.charges`` check what it may do, and the enqueue script
checks the counters.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    WithJsonSchema,
    create_model,
)

from common.access.cache_rule import NO_RULE, CacheRule, check_number
from common.guardrails.table import GUARDRAILS, Mode

_STRICT = ConfigDict(frozen=True, extra="forbid")
LIST_MAX = 1_000
Names = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=LIST_MAX)]
_ORIGIN = r"^(\*|[a-z][a-z0-9+.-]*://[^/\s,]+)$"  # As browsers write it.
Origin = Annotated[str, Field(pattern=_ORIGIN, max_length=255, examples=["https://app.example"])]


_DOLLARS_BOUND = 10**9
_DOLLARS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def _as_dollars(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and not _DOLLARS.fullmatch(value)):
        raise ValueError('it must be a number of dollars, such as 0.25 or "0.25"')
    return value


Count = Annotated[int, Field(ge=1, le=10**12), BeforeValidator(check_number)]
# A number, or text such as "0.25". It is serialised as text, as exact as the ledger: to the nano-dollar.
Dollars = Annotated[
    Decimal,
    Field(ge=0, lt=_DOLLARS_BOUND),
    BeforeValidator(_as_dollars),
    AfterValidator(lambda dollars: round(dollars, 9)),
    PlainSerializer(lambda dollars: f"{dollars.normalize():f}", str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "exclusiveMaximum": _DOLLARS_BOUND},
                {"type": "string", "pattern": f"^{_DOLLARS.pattern}$"},
            ]
        },
        mode="validation",
    ),
]


def is_origin(text: str) -> bool:
    return re.fullmatch(_ORIGIN, text) is not None


class Limits(BaseModel):
    """Maximum of requests and tokens in ``window_s`` seconds, and of concurrent generations. None: no limit.

    Tokens are those of prompts and answers together.
    """

    model_config = _STRICT

    requests: Count | None = None
    tokens: Count | None = None
    concurrent: Count | None = None
    window_s: Annotated[float, Field(ge=1, le=86_400), BeforeValidator(check_number)] = 60

    @property
    def is_set(self) -> bool:
        return (self.requests or self.tokens or self.concurrent) is not None


NO_LIMITS = Limits()


class Budget(BaseModel):
    """Maximum of US dollars per day and per month (UTC). None: no limit."""

    model_config = _STRICT

    day_usd: Dollars | None = None
    month_usd: Dollars | None = None


_MODE_FIELDS: dict[str, Any] = {row.name: (Mode, Mode.OFF) for row in GUARDRAILS}
_Modes: Any = create_model("_Modes", **_MODE_FIELDS)


class GuardrailPolicy(_Modes):  # It has a field for each row of the table.
    """What each guardrail does with a match: nothing, a log line and a metric, or a refusal.

    For ``pii`` and ``sanitize``, block means that the text is replaced, not refused.
    """

    model_config = _STRICT

    def mode(self, guardrail: str) -> Mode:
        mode: Mode = getattr(self, guardrail)
        return mode

    @property
    def is_off(self) -> bool:
        return all(mode is Mode.OFF for _, mode in self)

    def stricter(self, policy: "GuardrailPolicy") -> "GuardrailPolicy":
        """Return the stricter mode of both for each guardrail."""
        modes = list(Mode)  # From the mildest to the strictest.
        return GuardrailPolicy(**{name: max(mode, policy.mode(name), key=modes.index) for name, mode in self})


class Access(BaseModel):
    """Names may contain ``*`` and ``?``. None allows all. ``common.config.model_patterns`` says how ``models`` are matched."""

    model_config = _STRICT

    models: Names | None = None
    providers: Names | None = None
    dialects: Names | None = None
    cors_origins: Annotated[tuple[Origin, ...], Field(max_length=LIST_MAX)] | None = None
    disconnect: Annotated[str, Field(pattern=r"^(stop|detach|grace=[0-9]{1,4})$", examples=["grace=60"])] | None = None
    highest_class: Literal["interactive", "background"] = "interactive"  # Of its requests. Interactive is the higher one.
    limits: Limits = Limits()
    budget: Budget = Budget()
    guardrails: GuardrailPolicy | None = None
    audit: StrictBool = False
    cache: CacheRule = NO_RULE

    def allows_dialect(self, name: str) -> bool:
        return self.dialects is None or any(fnmatchcase(name, pattern) for pattern in self.dialects)


ALL = Access()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request. ``id`` names the owner of generations and never reveals a key. Principals of one ``tenant`` share
    its queue turns and budgets. ``end_user`` is the user that a token names; it overrides the ``user`` field of a request.
    """

    id: str
    tenant: str = ""  # Empty: its own id.
    end_user: str | None = None
    access: Access = ALL
    tenant_access: Access = ALL
    scopes: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not self.tenant:
            object.__setattr__(self, "tenant", self.id)

    def allows_dialect(self, name: str) -> bool:
        return self.access.allows_dialect(name) and self.tenant_access.allows_dialect(name)

    @property
    def guardrails(self) -> GuardrailPolicy | None:
        """The stricter of the key's and the tenant's policies. None where neither has one."""
        key_policy, tenant_policy = self.access.guardrails, self.tenant_access.guardrails
        return key_policy.stricter(tenant_policy) if key_policy and tenant_policy else key_policy or tenant_policy

    @property
    def disconnect(self) -> str | None:
        return self.access.disconnect or self.tenant_access.disconnect

    @property
    def highest_class(self) -> Literal["interactive", "background"]:
        is_background = "background" in (self.access.highest_class, self.tenant_access.highest_class)
        return "background" if is_background else "interactive"

    @property
    def is_audited(self) -> bool:
        return self.access.audit or self.tenant_access.audit

"""What can a model do, at which vendor?

``models.toml`` beside this file is the table: one row per vendor and pattern of model names, general rows first. All rows that
match a model are merged; a later row overrides the facts that it names. The settings can append rows (``SLUICE_MODEL_FACTS``).
The providers' request builders read the merged ``ModelFacts``; ``docs/models.md`` is generated from the same table.

A fact that no row states keeps its default here: what OpenAI's chat completions take. A row says where it comes from
(``source``), when that was read (``date``, year and month) and whether the vendor documents it or somebody saw it (``basis``).
"""

import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from common.vendors.table import WireName

_NAME_CHARS_MAX = 200  # A longer model name matches no row.
_PATTERN_CHARS_MAX = 300
_CACHED_MODELS_MAX = 4_096

_Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
ReasoningMode = Literal["never", "on_request", "by_default", "always"]
ReasoningSwitch = Literal["effort", "thinking", "between_tools", "budget", "none"]
MediaKind = Literal["image", "pdf", "text", "audio"]


class ModelFacts(BaseModel):
    """What one model takes and gives. Each field is one column of the table; its description is the column's meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wire: WireName | None = Field(None, description="The only wire that serves this model.")
    wire_with_tools: WireName | None = Field(None, description="The only wire that serves a request that offers tools.")
    reasoning: ReasoningMode | None = Field(
        None,
        description="When it reasons: never; on_request; by_default, unless it is switched off; or always.",
    )
    reasoning_off: ReasoningSwitch = Field(
        "none",
        description=(
            "What switches reasoning off: the effort `none`; the object `thinking` with type `disabled`, or with type"
            " `between_tools`, which only keeps it from thinking before it answers; a budget of 0; or nothing."
        ),
    )
    reasoning_on: Literal["effort", "adaptive", "budget", "thinking", "none"] = Field(
        "effort",
        description=(
            "What switches it on: an effort; Anthropic's adaptive thinking with an effort; a budget of tokens; the object"
            " `thinking` with type `enabled`; or nothing, as it needs none."
        ),
    )
    efforts: tuple[str, ...] | None = Field(
        None,
        description="The effort words that it takes, least first. Empty: it refuses the field. Unset: all pass.",
    )
    budget_tokens_min: _Tokens | None = Field(None, description="The smallest budget for reasoning that is not 0, in tokens.")
    budget_tokens_max: _Tokens | None = Field(None, description="The largest budget for reasoning, in tokens.")
    reasoning_is_hidden: bool = Field(False, description="It shows its reasoning only to a request that asks for a summary.")
    reasoning_field: Literal["reasoning_content", "reasoning"] | None = Field(
        None, description="The field of an assistant's message in which it takes its reasoning back."
    )
    reasoning_returns: Literal["never", "with_tool_calls", "always"] = Field(
        "never",
        description="Which assistant's messages of the history must carry it: those of turns with tool calls, or all.",
    )
    reasoning_is_bound: bool = Field(
        False,
        description="It refuses reasoning of the history when the system prompt, a tool or a message before it has changed.",
    )
    refused_fields: frozenset[str] = Field(frozenset(), description="Sampling fields that it refuses, by our names.")
    refused_while_reasoning: frozenset[str] = Field(
        frozenset(), description="Sampling fields that it refuses too, unless its reasoning is off."
    )
    stops_max: Annotated[int, Field(ge=1, le=1_000)] | None = Field(None, description="How many stop sequences it takes.")
    tools: bool = Field(True, description="Whether a request may offer it tools.")
    forced_tool_choice: bool = Field(True, description="Whether a request may force it to call a tool.")
    forced_tool_choice_while_reasoning: bool = Field(
        True, description="Whether a request may force it to call a tool while its reasoning is on."
    )
    prefill: bool | None = Field(None, description="Whether it continues an assistant's message at the end of the request.")
    prefill_flag: Literal["prefix"] | None = Field(None, description="The field that marks such a message.")
    reads: frozenset[MediaKind] | None = Field(None, description="What it reads besides plain messages. Unset: not known.")
    makes_images: bool = Field(False, description="Whether it can answer with images.")
    json_schema: bool | None = Field(None, description="Whether it takes a JSON schema for its answer. Unset: not known.")
    json_schema_with_tools: bool = Field(True, description="Whether it takes one in a request that also offers tools.")
    schema_objects_closed: bool = Field(
        False, description="A JSON schema for its answer must say `additionalProperties: false` for every object."
    )
    schema_refuses: frozenset[str] = Field(
        frozenset(),
        description="Keywords that it refuses in a JSON schema for its answer; descriptions carry them instead.",
    )
    schema_required_needed: bool = Field(
        False,
        description="Every object of a JSON schema for its answer must require a property; else the first becomes required.",
    )
    tool_properties_needed: bool = Field(False, description="A tool's schema must have `properties`, even when they are empty.")
    tool_root_refuses: frozenset[str] = Field(
        frozenset(), description="Keywords that it refuses at the root of a tool's schema; they are merged into `properties`."
    )
    tool_name_chars_max: Annotated[int, Field(ge=1, le=1_000)] | None = Field(None, description="The longest tool name.")
    tool_name_pattern: str | None = Field(
        None, description="The regular expression that a tool name must match as a whole; characters outside of it become `_`."
    )
    tool_names_reserved: frozenset[str] = Field(
        frozenset(), description="Tool names that it keeps for tools of its own: it refuses a client's tool of that name."
    )
    tools_strict_alike: bool = Field(False, description="All tools of a request must say the same of `strict`.")
    developer_role: bool = Field(True, description="Whether it knows the role `developer`; else it gets `system`.")
    system_position: Literal["anywhere", "after_user", "leading", "first"] = Field(
        "anywhere",
        description=(
            "Where system messages may stand: anywhere; before all others and right after a user's message; before all others;"
            " or as one single first message."
        ),
    )
    roles_alternate: bool = Field(
        False, description="After the system messages, the user's and the assistant's messages must alternate."
    )
    user_after_tool: bool = Field(True, description="Whether a user's message may follow a tool's result directly.")
    context_tokens: _Tokens | None = Field(None, description="Its context window, in tokens.")
    output_tokens_max: _Tokens | None = Field(None, description="The longest answer, in tokens.")
    output_tokens_max_unstreamed: _Tokens | None = Field(
        None, description="The longest answer to a request that is not streamed, in tokens. Unset: the same."
    )
    retires: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = Field(
        None, description="The day on which its vendor stops serving it."
    )
    successor: str | None = Field(None, description="The model that the vendor names as its successor.")


UNKNOWN = ModelFacts()  # Of a model that no row matches.


class ModelRow(ModelFacts):
    """One row: the facts that it names, for the models that ``models`` matches at ``vendors``.

    ``models`` is a regular expression that must match from the beginning of the vendor's own model name.
    """

    vendors: tuple[str, ...] = Field(min_length=1)
    models: Annotated[str, StringConstraints(max_length=_PATTERN_CHARS_MAX)] = ""
    source: str = ""
    date: str = ""
    basis: Literal["documented", "seen"] = "documented"

    @field_validator("models")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.models)

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that this row names, in the order of the columns."""
        return {name: getattr(self, name) for name in ModelFacts.model_fields if name in self.model_fields_set}


class ModelTable:
    """All rows, in order. ``facts`` is called once per request and deployment; its answers are cached."""

    def __init__(self, rows: Sequence[ModelRow]) -> None:
        self.rows = tuple(rows)
        self.facts = lru_cache(_CACHED_MODELS_MAX)(self._facts)

    def _facts(self, vendor: str, model: str, maker: str = "") -> ModelFacts:
        merged: dict[str, Any] = {}
        for row in self.matching(vendor, model, maker):
            merged |= row.facts
        return ModelFacts(**merged)

    def matching(self, vendor: str, model: str, maker: str = "") -> Iterable[ModelRow]:
        """Yield the rows that hold for a model, the most general first. ``maker``: another vendor whose models are served."""
        if len(model) > _NAME_CHARS_MAX:
            return
        for row in self.rows:
            if (vendor in row.vendors or maker in row.vendors) and row.pattern.match(model):
                yield row


def load_rows() -> list[ModelRow]:
    """Read the table that comes with the package."""
    text = resources.files(__package__).joinpath("models.toml").read_text(encoding="utf-8")
    return [ModelRow(**row) for row in tomllib.loads(text)["row"]]


MODELS = ModelTable(load_rows())  # As shipped; `ModelSettings.model_table` has the settings' own rows too.

"""What did a client ask for, in our own words?

``GenerationRequest`` is the canonical request: each dialect parses its body into one, each provider's wire is built from
one. A field belongs here when at least two vendors have it. What a client sent that has no place here is either kept as
``OpaquePart`` (a wire that cannot express it must refuse it, naming ``path``) or lives only in the original body, which
travels beside this request and is what a same-family upstream gets.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(slots=True)
class TextPart:
    text: str


@dataclass(slots=True)
class ImagePart:
    """Either ``url`` (http or https, fetched by the vendor, never by us), or base64 ``data`` with its ``media_type``."""

    url: str | None = None
    data: str | None = None
    media_type: str | None = None
    detail: str | None = None

    @property
    def address(self) -> str:
        """Where it is: its url, or one that holds the data."""
        return self.url or f"data:{self.media_type};base64,{self.data}"


@dataclass(slots=True)
class ReasoningPart:
    """A thinking block that the client sends back; see ``events.ReasoningBlock``."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None


@dataclass(slots=True)
class ToolCallPart:
    """``arguments`` is JSON text, ``"{}"`` where there are none."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ToolResultPart:
    tool_call_id: str
    content: "list[TextPart | ImagePart | OpaquePart]"
    is_error: bool = False


@dataclass(slots=True)
class OpaquePart:
    """Something only the client's own family understands. ``path`` names it in the client's body: ``messages.0.content.1``."""

    type: str
    path: str


Part = TextPart | ImagePart | ReasoningPart | ToolCallPart | ToolResultPart | OpaquePart


@dataclass(slots=True)
class Message:
    role: Role
    parts: list[Part]


@dataclass(slots=True)
class Tool:
    """A function the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    strict: bool | None = None


@dataclass(slots=True)
class ToolChoice:
    mode: Literal["auto", "none", "required", "tool"]
    name: str | None = None  # The tool's, where mode is "tool".


@dataclass(slots=True)
class ResponseFormat:
    """``schema`` is None for plain JSON."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


@dataclass(slots=True)
class Reasoning:
    """How much the model should think. At most one of the two is set; both None: as the model sees fit."""

    enabled: bool = True
    effort: str | None = None  # "minimal", "low", "medium", "high"…
    budget_tokens: int | None = None


@dataclass(slots=True)
class GenerationRequest:
    """``messages`` is never empty. ``opaque`` holds what the body has outside its messages that no other wire can express.

    ``dropped`` names what only the client's own family has and what was merely offered, such as a tool that runs at the
    vendor: other wires leave it out, and the client is told. ``names`` are the dialect's own words for fields of ours, where
    it has others: what a wire leaves out or refuses is named by them.
    """

    model: str
    messages: list[Message]
    provider: str | None = None  # Where the dialect names it beside the model.
    stream: bool = False
    include_usage: bool = True  # Whether a stream ends with usage; a choice that only openai-chat clients have.
    tools: list[Tool] = field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: list[str] = field(default_factory=list)
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    choices: int = 1
    response_format: ResponseFormat | None = None
    reasoning: Reasoning | None = None
    end_user: str | None = None
    opaque: list[OpaquePart] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict, compare=False)

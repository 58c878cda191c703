"""What did a client ask for, in our own words?

``GenerationRequest`` is the canonical request: each dialect parses its body into one, and each provider's wire is built from
one. A field belongs here when at least two vendors have it. Anything else that a client sent is either kept as an
``OpaquePart`` (a wire that cannot express it names ``path``: it refuses what the client asks for now, and leaves out what is
only history), or exists only in the original body. That body travels beside this request; an upstream of the same family gets
it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


# Anthropic's mark on a part: the prompt up to its end shall be cached. A wire that has no such mark leaves it out.
CacheMark = dict[str, str]


@dataclass(slots=True)
class TextPart:
    text: str
    cache_mark: CacheMark | None = None


@dataclass(slots=True)
class ImagePart:
    """Either ``url`` (http or https, fetched by the vendor, never by us), or base64 ``data`` with its ``media_type``."""

    url: str | None = None
    data: str | None = None
    media_type: str | None = None
    detail: str | None = None
    path: str = field(default="messages", compare=False)
    cache_mark: CacheMark | None = None

    @property
    def address(self) -> str:
        """The image's URL: ``url``, or a data URL that contains the data."""
        return self.url or f"data:{self.media_type};base64,{self.data}"


@dataclass(slots=True)
class DocumentPart:
    """A file for the model to read: a PDF, a text, audio, … It has exactly one of ``text``, ``data`` (base64), ``url`` (http or
    https, fetched by the vendor, never by us) and ``file_id`` (uploaded to a vendor of the family ``files_at``).

    ``path`` is its place in the client's body.
    """

    media_type: str
    text: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    files_at: Literal["openai", "anthropic"] | None = None
    name: str | None = None
    path: str = field(default="messages", compare=False)
    cache_mark: CacheMark | None = None

    @property
    def address(self) -> str:
        """The document's URL: ``url``, or a data URL that contains the data."""
        return self.url or f"data:{self.media_type};base64,{self.data}"


@dataclass(slots=True)
class ReasoningPart:
    """A reasoning block that the client sends back; see ``reply.ReasoningBlock``.

    ``is_whole``: whether it has the text that was signed. Some clients return only the signature.
    """

    text: str = ""
    signature: str | None = None
    redacted: str | None = None
    is_whole: bool = True


@dataclass(slots=True)
class ToolCallPart:
    """``arguments`` is JSON text, ``"{}"`` if the call has no arguments."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ToolResultPart:
    tool_call_id: str
    content: "list[TextPart | ImagePart | DocumentPart | OpaquePart]"
    is_error: bool = False
    cache_mark: CacheMark | None = None


@dataclass(slots=True)
class OpaquePart:
    """Something that only the client's own family understands. ``path`` is its place in the client's body, such as
    ``messages.0.content.1``. In an assistant's message it is something that the model or its vendor made.
    """

    type: str
    path: str


Part = TextPart | ImagePart | DocumentPart | ReasoningPart | ToolCallPart | ToolResultPart | OpaquePart


@dataclass(slots=True)
class Message:
    role: Role
    parts: list[Part]


@dataclass(slots=True)
class Tool:
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    strict: bool | None = None
    cache_mark: CacheMark | None = None


@dataclass(slots=True)
class ToolChoice:
    mode: Literal["auto", "none", "required", "tool"]
    name: str | None = None  # Name of the tool if mode is "tool".


@dataclass(slots=True)
class ResponseFormat:
    """``schema`` is None for plain JSON."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


@dataclass(slots=True)
class Reasoning:
    """How much the model should reason. At most one of ``effort`` and ``budget_tokens`` is set; if none, the model decides.

    ``effort_is_hint``: the client's own family takes the effort for every model. It is only sent to models that are known to
    take one. ``is_shown``: whether the client wants to see the reasoning. A model that hides it is then asked for a summary.
    """

    enabled: bool = True
    effort: str | None = None  # "minimal", "low", "medium", "high"…
    budget_tokens: int | None = None
    effort_is_hint: bool = False
    is_shown: bool = True


@dataclass(slots=True)
class GenerationRequest:
    """``messages`` is never empty. ``opaque`` holds parts of the body outside its messages that no other wire can express.

    ``dropped`` names fields that only the client's own family has and that are only an offer, such as a tool that runs at the
    vendor. Other wires leave them out, and the response tells the client. ``names`` maps our field names to the dialect's names
    where they differ; messages about dropped or refused fields use the dialect's names. ``cache_mark`` lets the vendor choose
    where the cached prompt ends; requests with the same ``prompt_cache_key`` begin alike. ``caches_marked_only``: nothing but
    what has a mark may be written to a cache.
    """

    model: str
    messages: list[Message]
    provider: str | None = None  # Set if the dialect names the provider separately from the model.
    stream: bool = False
    include_usage: bool = True  # Whether a stream ends with usage. Only openai-chat clients can choose.
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
    prompt_cache_key: str | None = None
    cache_mark: CacheMark | None = None
    caches_marked_only: bool = False
    opaque: list[OpaquePart] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict, compare=False)

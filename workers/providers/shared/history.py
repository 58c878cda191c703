"""What becomes of the parts of a conversation that a wire or its model cannot read?

A wire says what it ``Carries``; the table of models says what the model reads. What the client asks for now is refused by its
path. What stands in the history never ends a session: a document or an image becomes a short text, anything else is left out,
and both are named to the client. A turn with tool results is history too: an agent sends it, and nobody could choose otherwise.

Whether a part counts as history changes only a refusal, never a text, so a conversation keeps its prefix from turn to turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Role,
    TextPart,
    ToolResultPart,
)
from common.vendors.models import ModelFacts
from workers.providers.shared.loose_json import dict_of, list_of, text_of
from workers.providers.shared.unsupported import invalid_field_error, unsupported_part_error

Kind = Literal["image", "pdf", "text", "audio", "video", "other"]

_NAMED_MAX = 10  # Paths in one response header; proxies limit its size.
# The fact of the table that speaks for a kind of document that it does not name.
_FACT_OF: dict[str, str] = {"other": "pdf", "text": "pdf"}
_KIND_OF_PART: dict[str, Kind] = {"image_url": "image", "file": "pdf", "document_url": "pdf", "input_audio": "audio"}
_KIND_OF_PART |= {"input_image": "image", "input_file": "pdf"}  # Of the Responses API.
_MEDIA: frozenset[Kind] = frozenset(_KIND_OF_PART.values())


@dataclass(frozen=True, slots=True)
class Carries:
    """What a wire can express. ``by_url``: what its vendor fetches. ``files_at``: whose uploaded files it can name.

    ``known_only``: what it can express, but only few models read. It is sent if the table of models says that this one does.
    ``text_documents``: whether a plain text has a form of its own; otherwise it becomes a text like every other.
    """

    kinds: frozenset[Kind] = frozenset({"image"})
    known_only: frozenset[Kind] = frozenset()
    by_url: frozenset[Kind] = frozenset({"image"})
    files_at: str | None = None
    text_documents: bool = False


def fit_history(request: GenerationRequest, facts: ModelFacts, carries: Carries) -> tuple[GenerationRequest, list[str]]:
    """Return the request with only such parts as the wire can express, and the names of those that were left out or replaced.

    Raises:
        GatewayError: INVALID_REQUEST that names a part of the last user's turn.
    """
    fitter = _Fitter(facts, carries)
    messages = request.messages
    asked_from = _question_start([_speaker(message) for message in messages])
    fitted = []
    for index, message in enumerate(messages):
        parts = fitter.fit(message.parts, is_asked=index >= asked_from, role=message.role)
        if parts is message.parts:
            fitted.append(message)
        elif parts:
            fitted.append(Message(message.role, parts))
    if not fitter.has_changed:
        return request, []
    return replace(request, messages=fitted), _shortened(fitter.left_out)


def fit_passed(body: dict[str, Any], facts: ModelFacts, unread: frozenset[Kind] = frozenset()) -> list[str]:
    """Replace media in the history of a chat completions body that passes to its own family, if the model is known to read
    none; return their names. There the vendor itself answers what the client asks for now, in its own words.

    Args:
        unread: What the vendor refuses unless the table says that the model reads it.
    """
    speakers = [text_of(dict_of(message).get("role")) for message in list_of(body.get("messages"))]
    return _fit_passed(body, "messages", speakers, facts, unread)


def fit_passed_input(body: dict[str, Any], facts: ModelFacts) -> list[str]:
    """Do the same for a body of the Responses API."""
    speakers = [_speaker_of_item(dict_of(item)) for item in list_of(body.get("input"))]
    return _fit_passed(body, "input", speakers, facts, frozenset())


def _speaker_of_item(item: dict[str, Any]) -> str:
    if type_ := text_of(item.get("type")).removeprefix("message"):
        return "tool" if type_.endswith("_output") else "assistant"
    return text_of(item.get("role"))


def _fit_passed(
    body: dict[str, Any], field: str, speakers: Sequence[str], facts: ModelFacts, unread: frozenset[Kind]
) -> list[str]:
    reads: frozenset[Kind] = _MEDIA - unread if facts.reads is None else frozenset(facts.reads)
    if reads == _MEDIA:
        return []
    fitted = list_of(body.get(field)).copy()
    left_out: list[str] = []
    for index in range(_question_start(speakers)):
        item = dict_of(fitted[index])
        for name in ("content", "output"):
            parts = item.get(name)
            if isinstance(parts, list) and any(_is_unread(part, reads) for part in parts):
                left_out += [f"{field}.{index}.{name}.{at}" for at, part in enumerate(parts) if _is_unread(part, reads)]
                fitted[index] = {**item, name: [_passed(part, reads) for part in parts]}
    if left_out:
        body[field] = fitted
    return _shortened(left_out)


def _is_unread(part: Any, reads: frozenset[Kind]) -> bool:
    kind = _KIND_OF_PART.get(text_of(dict_of(part).get("type")))
    return kind is not None and kind not in reads


def _passed(part: Any, reads: frozenset[Kind]) -> Any:
    if not _is_unread(part, reads):
        return part
    is_input = part["type"] in ("input_image", "input_file")
    name = text_of((part if is_input else dict_of(part.get("file"))).get("filename"))
    what = "an image" if _KIND_OF_PART[part["type"]] == "image" else f"a document {name}".rstrip()
    return {"type": "input_text" if is_input else "text", "text": mention(what)}


def _speaker(message: Message) -> str:
    return "tool" if any(isinstance(part, ToolResultPart) for part in message.parts) else message.role.value


def _question_start(speakers: Sequence[str]) -> int:
    """Return the index of the first message of the client's question; all of them are history if a tool answers last.

    The question follows the model's last message. The beginning of the next answer, after the question, does not count.
    """
    index = len(speakers)
    while index and speakers[index - 1] == "assistant":
        index -= 1
    while index and speakers[index - 1] != "assistant":
        index -= 1
    return len(speakers) if "tool" in speakers[index:] else index


def _shortened(paths: list[str]) -> list[str]:
    more = len(paths) - _NAMED_MAX
    return paths if more <= 0 else [*paths[:_NAMED_MAX], f"{more} more parts of messages"]


@dataclass(slots=True)
class _Fitter:
    facts: ModelFacts
    carries: Carries
    left_out: list[str] = field(default_factory=list)
    has_changed: bool = False

    def fit(self, parts: list[Any], *, is_asked: bool, role: Role) -> list[Any]:
        """Return the same list if every part can stay, otherwise a new one."""
        fitted: list[Any] | None = None
        for index, part in enumerate(parts):
            new = self._fit(part, is_asked=is_asked, role=role)
            if fitted is None and new is not part:
                fitted, self.has_changed = parts[:index], True
            if fitted is not None and new is not None:
                fitted.append(new)
        return parts if fitted is None else fitted

    def _fit(self, part: Any, *, is_asked: bool, role: Role) -> Any:
        match part:
            case ToolResultPart():
                content = self.fit(part.content, is_asked=False, role=role)
                return part if content is part.content else replace(part, content=content)
            case DocumentPart(text=str() as text) if not self.carries.text_documents:
                return TextPart(f"{part.name}\n\n{text}" if part.name else text)
            case ImagePart() | DocumentPart() if role is Role.ASSISTANT:
                return self._leave_out(part)  # A model must not find our words among its own.
            case ImagePart() | DocumentPart():
                if (fault := self._fault(part)) is None:
                    return part
                if is_asked:
                    raise invalid_field_error(part.path, fault)
                self._leave_out(part)
                return TextPart(mention(_described(part)))
            case OpaquePart():
                if is_asked and role is not Role.ASSISTANT:
                    raise unsupported_part_error(part)
                return self._leave_out(part)
            case _:
                return part

    def _leave_out(self, part: ImagePart | DocumentPart | OpaquePart) -> None:
        self.left_out.append(part.path)

    def _fault(self, part: ImagePart | DocumentPart) -> str | None:
        """Return why the part cannot be sent, as the rest of a sentence; None: it can."""
        if isinstance(part, DocumentPart) and part.file_id is not None:
            is_there = part.files_at is not None and part.files_at == self.carries.files_at
            return None if is_there else "must hold the document itself: the file was uploaded to another vendor"
        kind = kind_of(part)
        if not self._reads(kind):
            what = "an image" if isinstance(part, ImagePart) else f"a document of the type {part.media_type}"
            return f"must not be {what}: this model cannot read it; leave it out, send its text, or choose another model"
        if part.url is not None and kind not in self.carries.by_url:
            return "must hold the document itself, in base64: the provider of this model does not fetch it"
        return None

    def _reads(self, kind: Kind) -> bool:
        known = self.facts.reads
        if kind in self.carries.known_only:
            return known is not None and _FACT_OF.get(kind, kind) in known
        return kind in self.carries.kinds and (known is None or kind == "video" or _FACT_OF.get(kind, kind) in known)


def kind_of(part: ImagePart | DocumentPart) -> Kind:
    if isinstance(part, ImagePart):
        return "image"
    if part.text is not None:
        return "text"
    if part.media_type == "application/pdf":
        return "pdf"
    match part.media_type.partition("/")[0]:
        case "audio":
            return "audio"
        case "video":
            return "video"
        case "text":
            return "text"
        case _:
            return "other"


def _described(part: ImagePart | DocumentPart) -> str:
    if isinstance(part, ImagePart):
        return "an image"
    name = f" {part.name or part.url}" if part.name or part.url else ""
    return f"a document{name} ({part.media_type})"


def mention(what: str) -> str:
    """Return the text for ``what``, such as "an image", that a model cannot read."""
    return f"[Here was {what}, which this model cannot read.]"

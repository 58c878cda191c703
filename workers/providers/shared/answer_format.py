"""What becomes of a wish for JSON that a model does not take?

Some models take no JSON schema, and some take neither a schema nor plain JSON in a request that offers tools. The prompt then
says what the answer must be, and the client learns that nothing enforces it. Agents go on: these models mostly obey.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from common.canonical.generation import GenerationRequest, Message, ResponseFormat, Role, TextPart
from common.vendors.models import ModelFacts
from workers.providers.shared.loose_json import dict_of, list_of

NAME = "response_format"
# A model may still write a code fence now and then; only a schema that the vendor takes is enforced.
_ONLY_JSON = "{} with one valid JSON object and nothing else: no words before or after it, and no code fence."
_BY_SCHEMA = "The object must conform to this JSON schema: "
_SYSTEM = ("system", "developer")


def json_prompt(schema: Mapping[str, Any] | None, *, has_tools: bool = False) -> str:
    """Return the sentences that ask a model for JSON; with a schema, also for its form."""
    only_json = _ONLY_JSON.format("When you do not call a tool, answer" if has_tools else "Answer")
    return only_json if schema is None else f"{only_json}\n{_BY_SCHEMA}{orjson.dumps(schema).decode()}"


def fit_answer_format(request: GenerationRequest, facts: ModelFacts) -> tuple[GenerationRequest, list[str]]:
    """Return the request with a format that its model takes, and the name of the format if the prompt must say a part of it."""
    wanted = request.response_format
    if wanted is None or _takes(facts, has_schema=wanted.schema is not None, has_tools=bool(request.tools)):
        return request, []
    prompt = Message(Role.SYSTEM, [TextPart(json_prompt(wanted.schema, has_tools=bool(request.tools)))])
    messages = request.messages
    at = next((index for index, message in enumerate(messages) if message.role is not Role.SYSTEM), len(messages))
    left = ResponseFormat() if _takes(facts, has_schema=False, has_tools=bool(request.tools)) else None
    return replace(request, messages=[*messages[:at], prompt, *messages[at:]], response_format=left), [NAME]


def fit_passed_answer_format(body: dict[str, Any], facts: ModelFacts) -> list[str]:
    """Do the same for a body of chat completions, which is changed."""
    wanted = dict_of(body.get(NAME))
    has_schema, has_tools = wanted.get("type") == "json_schema", bool(body.get("tools"))
    is_json = has_schema or wanted.get("type") == "json_object"
    messages = list_of(body.get("messages"))
    if not is_json or not messages or _takes(facts, has_schema=has_schema, has_tools=has_tools):
        return []
    schema = dict_of(wanted.get("json_schema")).get("schema")
    prompt = {"role": "system", "content": json_prompt(schema, has_tools=has_tools)}
    at = next((index for index, item in enumerate(messages) if dict_of(item).get("role") not in _SYSTEM), len(messages))
    body["messages"] = [*messages[:at], prompt, *messages[at:]]
    if _takes(facts, has_schema=False, has_tools=has_tools):
        body[NAME] = {"type": "json_object"}
    else:
        del body[NAME]
    return [NAME]


def _takes(facts: ModelFacts, *, has_schema: bool, has_tools: bool) -> bool:
    if has_tools and not facts.json_schema_with_tools:
        return False
    return not has_schema or facts.json_schema is not False

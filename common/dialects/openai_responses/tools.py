"""Which tools does an OpenAI responses request offer, and which must the model use?

Called by ``request``. Tools stand in the body's own list and, later, as items of the input. A tool of a namespace has a name of
its own for other vendors (``flat_name``), and a custom tool, whose input is plain text, is a function there; ``encoder`` asks
``custom_tools`` and ``namespaces`` to give the calls back under the client's names.

Source: https://platform.openai.com/docs/api-reference/responses/create, and what Codex sends.
"""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal

from pydantic import Field

from common.canonical.generation import (
    GenerationRequest,
    OpaquePart,
    Tool,
    ToolChoice,
)
from common.dialects.shared.custom_tools import custom_function
from common.dialects.shared.parts import (
    allow_tools,
)
from common.dialects.shared.reading import Shape, invalid, join_path, read

_TOOL_NAME_CHARS_MAX = 64  # The longest name that every vendor accepts.


class _Function(Shape):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _CustomTool(Shape):
    name: str = Field(min_length=1)
    description: str | None = None
    format: dict[str, Any] | None = None


class _Namespace(Shape):
    name: str
    tools: list[dict[str, Any]]


class _AllowedTools(Shape):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


def tool_lists(body: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists of tools, with their places: the body's own, and those that came later, as items of the input.

    Codex sends all its tools in an item ``additional_tools``; ``tool_search_output`` holds tools that a search found.
    """
    if body.get("tools"):
        yield "tools", body["tools"]
    items = body.get("input")
    for index, item in enumerate(items if isinstance(items, list) else []):
        if item.get("type") in ("additional_tools", "tool_search_output") and isinstance(item.get("tools"), list):
            yield join_path("input", index, "tools"), item["tools"]


def read_tools(items: list[Any], list_path: str, request: GenerationRequest) -> None:
    names = {tool.name for tool in request.tools}  # A later list may repeat a tool.
    for index, item in enumerate(items):
        path = join_path(list_path, index)
        if not isinstance(item, dict):
            raise invalid(path, "must be a tool: an object with a type")
        match item.get("type"):
            case "function":
                _add_tool(_tool(item, path), names, request)
            case "custom":
                _add_tool(_custom_tool(item, path), names, request)
            case "namespace":
                for tool_index, tool in enumerate(read(_Namespace, item, path).tools):
                    tool_path = join_path(path, "tools", tool_index)
                    if tool.get("type") == "function":
                        _add_tool(_tool(tool, tool_path, item["name"]), names, request)
                    elif tool.get("type") == "custom":
                        _add_tool(_custom_tool(tool, tool_path, item["name"]), names, request)
                    else:
                        request.dropped.append(tool_path)
            case str():
                request.dropped.append(path)
            case _:
                raise invalid(join_path(path, "type"), "must be a string")


def _add_tool(tool: Tool, names: set[str], request: GenerationRequest) -> None:
    if tool.name not in names:
        request.tools.append(tool)


def _tool(item: dict[str, Any], path: str, namespace: str | None = None) -> Tool:
    function = read(_Function, item, path)
    return Tool(flat_name(namespace, function.name), function.description, function.parameters or {}, function.strict)


def _custom_tool(item: dict[str, Any], path: str, namespace: str | None = None) -> Tool:
    tool = read(_CustomTool, item, path)
    return custom_function(flat_name(namespace, tool.name), tool.description, tool.format)


def custom_tools(body: Mapping[str, Any]) -> frozenset[str]:
    """Return the flat names of a parsed body's custom tools."""
    return frozenset(flat_name(space, name) for space, name, type_ in _named_tools(body) if type_ == "custom")


def flat_name(namespace: str | None, name: str) -> str:
    """Return the name under which a namespace's function is sent to other vendors, which have no namespaces."""
    if not namespace:
        return name
    flat = f"{namespace}__{name}"
    if len(flat) <= _TOOL_NAME_CHARS_MAX:
        return flat
    return f"{flat[: _TOOL_NAME_CHARS_MAX - 9]}_{hashlib.sha256(flat.encode()).hexdigest()[:8]}"


def namespaces(body: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Map the flat names of a parsed body's tools back: flat name → (namespace, name)."""
    return {flat_name(space, name): (space, name) for space, name, _ in _named_tools(body) if space}


def _named_tools(body: Mapping[str, Any]) -> Iterator[tuple[str | None, str, str]]:
    """Yield the namespace, name and type of each tool that the client runs."""
    for item in chain.from_iterable(items for _, items in tool_lists(body)):
        if item["type"] == "namespace":
            for tool in item["tools"]:
                if tool.get("type") in ("function", "custom"):
                    yield item["name"], tool["name"], tool["type"]
        elif item["type"] in ("function", "custom"):
            yield None, item["name"], item["type"]


def read_tool_choice(value: object, request: GenerationRequest) -> None:
    match value:
        case None:
            pass
        case "auto" | "none":
            request.tool_choice = ToolChoice("auto" if value == "auto" else "none")
        case "required":
            request.tool_choice = ToolChoice("required")
        case {"type": "function" | "custom", "name": str() as name}:
            request.tool_choice = ToolChoice("tool", name)
        case {"type": "allowed_tools"}:
            allowed = read(_AllowedTools, value, "tool_choice")
            names = {flat_name(tool.get("namespace"), str(tool.get("name"))) for tool in allowed.tools}
            allow_tools(request, allowed.mode, names, "tool_choice")
            return
        case {"type": str() as type_}:
            request.opaque.append(OpaquePart(type_, "tool_choice"))
        case _:
            raise invalid("tool_choice", 'must be "auto", "none", "required" or an object with a type')
    if request.tool_choice and request.tool_choice.mode == "required" and not request.tools:
        request.opaque.append(OpaquePart("required", "tool_choice"))  # All tools that it could mean were dropped.

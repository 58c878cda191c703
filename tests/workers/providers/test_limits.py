"""What becomes of a limit of tokens, and of stop sequences, that a model does not take?"""

from typing import Any

import orjson
import pytest

from common.canonical.errors import GatewayError
from common.canonical.generation import GenerationRequest, Message, Role, TextPart
from common.dialects import DIALECTS
from common.vendors.models import ModelFacts
from workers.providers import WIRES
from workers.providers.base import Deployment, FamilyWire
from workers.providers.shared.limits import fit_limits

FACTS = ModelFacts(output_tokens_max=8_000, stops_max=2)


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest("m", [Message(Role.USER, [TextPart("hi")])], **fields)


def test_a_limit_above_the_longest_answer_becomes_the_longest_answer_and_is_named() -> None:
    fitted, dropped = fit_limits(request(max_output_tokens=64_000), FACTS)

    assert (fitted.max_output_tokens, dropped) == (8_000, ["max_output_tokens"])


@pytest.mark.parametrize("limit", [None, 1, 8_000])
def test_a_limit_that_the_model_has_stays(limit: int | None) -> None:
    asked = request(max_output_tokens=limit)

    assert fit_limits(asked, FACTS) == (asked, [])
    assert fit_limits(asked, ModelFacts()) == (asked, [])


def test_too_many_stop_sequences_are_refused_under_the_client_s_name() -> None:
    with pytest.raises(GatewayError) as refused:
        fit_limits(request(stop=["a", "b", "c"], names={"stop": "stop_sequences"}), FACTS)

    assert refused.value.failed.param == "stop_sequences"
    assert "at most 2" in refused.value.failed.message
    assert fit_limits(request(stop=["a", "b"]), FACTS)[1] == []


@pytest.mark.parametrize("wire", ["openai-chat", "openai-responses"])
def test_a_body_that_passes_is_limited_too(wire: str) -> None:
    name = {"openai-chat": "max_completion_tokens", "openai-responses": "max_output_tokens"}[wire]

    assert passed(wire, "lab", {name: 64_000}) == ({name: 8_000}, [name])
    assert passed(wire, "lab", {name: 100}) == ({name: 100}, [])
    assert passed(wire, "openai", {name: 64_000}) == ({name: 64_000}, [])  # OpenAI's clients get its own words.


def test_too_many_stop_sequences_of_a_body_that_passes_are_refused() -> None:
    with pytest.raises(GatewayError, match="at most 2"):
        passed("openai-chat", "lab", {"stop": ["a", "b", "c"]})

    assert passed("openai-chat", "lab", {"stop": "a"}) == ({"stop": "a"}, [])


def passed(wire_name: str, provider: str, fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    wire = WIRES[wire_name]
    assert isinstance(wire, FamilyWire)
    built = wire.pass_request({"model": "m", **fields}, {}, Deployment(provider, "https://x.example", "k", "m", facts=FACTS))
    return {name: value for name, value in orjson.loads(built.body).items() if name != "model"}, built.dropped


@pytest.mark.parametrize(
    ("dialect", "body", "name"),
    [
        ("openai-chat", {"max_completion_tokens": 9}, "max_completion_tokens"),
        ("openai-chat", {"max_tokens": 9}, "max_tokens"),
        ("anthropic-messages", {"max_tokens": 9}, "max_tokens"),
        ("openai-responses", {"max_output_tokens": 9, "input": "hi"}, "max_output_tokens"),
        ("agentary", {"max_new_tokens": 9}, "max_new_tokens"),
    ],
)
def test_a_limit_is_named_as_the_client_named_it(dialect: str, body: dict[str, Any], name: str) -> None:
    parsed = DIALECTS[dialect].parse({"model": "m", "messages": [{"role": "user", "content": "hi"}], **body})

    assert parsed.names.get("max_output_tokens", "max_output_tokens") == name

"""What a call that was made twice leaves in the log, for the worker that goes on if this one is lost."""

import orjson

from common.canonical.events import Usage
from common.canonical.job import Job, Policy
from common.channel.base import FrameKind
from common.config.route_rules import Route
from common.metering.attempt_cost import Attempt, unpack
from tests.workers.test_generate import Setup, setup  # noqa: F401 - a fixture.
from workers.metering.charging import pack_with_running
from workers.outcome import Total
from workers.providers.base import Deployment


def add_route(setup: Setup, **rules: object) -> None:  # noqa: F811
    settings = setup.services.settings
    settings.routes["r"] = route = Route(**rules)
    settings.aliases["r"] = [rule.model for rule in route.rules]


async def test_the_head_has_the_cost_of_the_call_that_was_overtaken(setup):  # noqa: F811
    add_route(setup, targets=["demo/demo-n2-d0-f60000", "demo/demo-n3-d0"], hedge_after_ms=10)
    await setup.open("r")

    await setup.run()

    head = orjson.loads(next(frame.data for frame in await setup.frames() if frame.kind is FrameKind.HEAD))
    assert [attempt["model"] for attempt in head["attempts"]] == ["demo-n2-d0-f60000"]
    assert head["attempts"][0]["usage"]["input_tokens"] > 0
    assert (head["tries"], head["upstream_model"], head["route_reason"]) == (2, "demo-n3-d0", "hedge")
    end = await setup.end()
    assert [attempt["model"] for attempt in end["attempts"]] == ["demo-n2-d0-f60000", "demo-n3-d0"]
    assert (end["tries"], end["route_reason"]) == (2, "hedge")


async def test_a_whole_answer_is_of_one_call_too(setup):  # noqa: F811
    add_route(setup, targets=["demo/demo-n2-d0-f60000", "demo/demo-n3-d0"], hedge_after_ms=10)
    await setup.open("r", stream=False)

    await setup.run()

    assert [attempt["model"] for attempt in (await setup.end())["attempts"]] == ["demo-n2-d0-f60000", "demo-n3-d0"]
    assert (await setup.stats())["open"] == 0


async def test_a_call_that_breaks_off_after_it_has_won_is_not_replaced_by_the_other(setup):  # noqa: F811
    add_route(setup, targets=["demo/demo-n2-d0-f60000", "demo/demo-n9-d0-cut3"], hedge_after_ms=10)
    setup.services.settings.providers["demo"].continuation = "none"
    await setup.open("r")

    await setup.run()

    end = await setup.end()
    assert end["error"]["kind"] == "upstream_unavailable"
    assert (end["tries"], end["upstream_model"]) == (2, "demo-n9-d0-cut3")


def test_a_note_has_both_calls_that_run():
    total = Total(attempts=[Attempt("a", "m", Usage(1, 2))])
    for name in ("b", "c"):
        total.begin_call(Deployment(name, "", "", "m"))
    job = Job("g", "r", "openai-chat", "m", True, Policy.STOP, 0, 1, body=b"{}")
    assert [attempt.provider for attempt in unpack(pack_with_running(total, job))] == ["a", "b", "c"]

"""Faults of other systems (docs/lessons.md) that no other test would notice: costs and counts of the whole."""

import contextlib

import httpx
import pytest

from common.redis import keyspace
from tests.support.fleet import CHAT, Fleet, RawClient, body_of, headers_of, until

VIEWERS = 20


def test_all_viewers_of_a_process_share_one_subscribing_connection(shared: Fleet):
    with contextlib.ExitStack() as stack:
        for _ in range(VIEWERS):
            client = stack.enter_context(RawClient(shared.ports[0]))
            client.post(CHAT, body_of(CHAT, "demo-n10000-d20", stream=True))
            client.read_until(b'"content":"A')

        assert shared.metrics(shared.ports[0])["sluice_subscriptions"] == VIEWERS
        assert len(shared.redis.client_list(_type="pubsub")) == len(shared.apis)

    until(lambda: shared.metrics(shared.ports[0])["sluice_subscriptions"] == 0, "nobody is listened for")


def test_twice_the_answer_is_twice_the_log(shared: Fleet):
    sizes = []
    for count in (1000, 2000):
        response = shared.post(CHAT, body_of(CHAT, f"demo-n{count}-d0", stream=True))
        entries = shared.redis.xrange(keyspace.log(response.headers["x-generation-id"]))
        sizes.append(sum(len(fields[b"d"]) for _, fields in entries))

    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.1)


def test_an_id_is_never_used_again_whatever_the_client_calls_its_request(shared: Fleet):
    answers = [shared.post(CHAT, body_of(CHAT, "demo-n2-d0"), x_request_id="req_mine") for _ in range(5)]

    assert len({answer.headers["x-generation-id"] for answer in answers}) == 5


def test_stopping_what_never_was_leaves_nothing_that_could_stop_what_comes(shared: Fleet):
    unknown = "gen_" + "0" * 32

    response = httpx.delete(f"{shared.url}/v1/generations/{unknown}", headers=headers_of())

    assert response.status_code == 404
    assert not [key for key in shared.redis.scan_iter() if unknown.encode() in key]

"""What does each route make of bodies that nobody would send? An error in its own dialect, or an answer; never a 500.

Bytes and JSON of any kind, and real bodies with something in them turned into something else.
"""

import copy
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.support import fuzzing
from tests.support.compatibility.cells import CLIENTS
from tests.support.compatibility.request_fields import FIELDS
from tests.support.fleet import KEY, Fleet

PATHS = {
    "/v1/chat/completions": "openai-chat",
    "/v1/responses": "openai-responses",
    "/v1/messages": "anthropic-messages",
    "/v1/messages/count_tokens": "anthropic-messages",
    "/api/demo": "agentary",
    "/v1/chat": "unified",
    "/v1/generations": "openai-chat",
    "/v1/generations?dialect=openai-responses": "openai-responses",
}
MODEL = "demo-n1-d0"
EXAMPLES = 3 * fuzzing.EXAMPLES  # These are cheap.
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=not fuzzing.SEED,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Test = Callable[..., None]


def seeded(test: Test) -> Test:
    return seed(int(fuzzing.SEED))(test) if fuzzing.SEED else test


def check(response: httpx.Response, dialect: str) -> None:
    """An answer is one, and an error has the dialect's shape and says something."""
    assert response.status_code < 500, response.text
    assert response.headers["x-request-id"]
    if response.status_code in (200, 202):
        return
    assert response.status_code in (400, 404, 413, 415, 422), response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    if dialect == "anthropic-messages":
        assert (body["type"], body["request_id"]) == ("error", response.headers["request-id"])
        assert body["error"]["type"]
        assert body["error"]["message"]
    elif dialect in ("agentary", "unified"):
        assert isinstance(body["error"], str)
        assert body["error"]
    else:
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert body["error"]["message"]


def post(found: Fleet, path: str, content: bytes) -> httpx.Response:
    return found.client.post(found.url + path, content=content, headers=HEADERS)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return request.param


# What has nothing to do with a request

ODD_NUMBERS = st.sampled_from([0, -1, 2**31, 2**63, 2**64, -(2**63), 1e308, 1e-320, 0.1, 10**25])
SCALARS = st.none() | st.booleans() | ODD_NUMBERS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=15
)
NAMES = sorted({name for fields in FIELDS.values() for each in fields for name in each.fields} | {"messages", "input", "model"})
OBJECTS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6).map(
    lambda body: {"model": MODEL, "provider": "demo", **body}
)


def dumped(value: object) -> bytes:
    """JSON of what orjson would refuse to write, too: integers of any size."""
    return json.dumps(value).encode()


@seeded
@fuzz
@given(content=st.binary(max_size=200))
def test_any_bytes(shared: Fleet, path: str, content: bytes):
    check(post(shared, path, content), PATHS[path])


@seeded
@fuzz
@given(value=JSON | OBJECTS)
def test_any_json(shared: Fleet, path: str, value: object):
    check(post(shared, path, dumped(value)), PATHS[path])


# Real bodies with a fault


def real_bodies(dialect: str) -> list[dict[str, Any]]:
    """Bodies that use every field there is, once each, and conversations with tools, images and all else."""
    base = {"model": MODEL, "provider": "demo", **CLIENTS[dialect].fields_for("text")}
    return [{**base, **each.beside, **each.fields} for each in FIELDS[dialect]]


def places(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each value in a body."""
    found = [at] if at else []
    if isinstance(value, dict):
        return found + [each for key, inner in value.items() for each in places(inner, (*at, key))]
    if isinstance(value, list):
        return found + [each for index, inner in enumerate(value) for each in places(inner, (*at, index))]
    return found


def mutated(body: dict[str, Any], where: int, how: str, what: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    ways = [way for way in places(changed) if way != ("model",)]
    *way, last = ways[where % len(ways)]
    node: Any = changed
    for step in way:
        node = node[step]
    match how:
        case "replaced":
            node[last] = what
        case "removed":
            del node[last]
        case "wrapped":
            node[last] = [node[last]]
        case "named":
            node[last] = {str(last): node[last], "type": what}
        case "twice":
            node[last] = node[last] * 2 if isinstance(node[last], str | list) else [node[last], node[last]]
    return changed


@seeded
@fuzz
@given(data=st.data())
def test_a_real_body_with_a_fault(shared: Fleet, path: str, data: st.DataObject):
    body = data.draw(st.sampled_from(real_bodies(PATHS[path])))
    for _ in range(data.draw(st.integers(1, 3))):
        how = data.draw(st.sampled_from(["replaced", "removed", "wrapped", "named", "twice"]))
        body = mutated(body, data.draw(st.integers(0, 1000)), how, data.draw(JSON))

    check(post(shared, path, dumped(body)), PATHS[path])


def test_nothing_broke(shared: Fleet):
    """After all of the above: a fault that was answered politely, but thrown first, is one all the same."""
    assert not shared.apis[0].events("request_broke")
    assert not [line for line in shared.workers[0].lines() if line.get("code") == "internal"]
    assert shared.apis[0].is_alive
    assert shared.workers[0].is_alive

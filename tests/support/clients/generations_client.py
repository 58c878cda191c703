"""Functions for tests that start, read and stop generations over HTTP."""

from typing import Any

import httpx

from tests.support.fleet import CHAT, MESSAGES, Fleet, body_of, headers_of, until

RESPONSES, AGENTARY, UNIFIED = "openai-responses", "agentary", "unified"
ALL = (CHAT, MESSAGES, RESPONSES, AGENTARY, UNIFIED)
JSON = {"accept": "application/json"}


def url(fleet: Fleet, id_or_path: str = "", replica: int = 0) -> str:
    path = id_or_path if id_or_path.startswith("/") else f"/v1/generations/{id_or_path}".rstrip("/")
    return f"http://127.0.0.1:{fleet.ports[replica]}{path}"


def body(dialect: str, spec: str) -> dict[str, Any]:
    """Return a body of the dialect. Its provider belongs to another family if the dialect allows that."""
    match dialect:
        case "openai-responses":
            return {"model": f"anthropic/demo-{spec}", "input": "hi"}
        case "agentary" | "unified":
            return {**body_of(CHAT, f"demo-{spec}"), "provider": "openai"}
        case _:
            return body_of(dialect, f"openai/demo-{spec}")


def start_generation(fleet: Fleet, dialect: str, spec: str, **headers: str) -> httpx.Response:
    params = {} if dialect == CHAT else {"dialect": dialect}
    return fleet.client.post(url(fleet), params=params, json=body(dialect, spec), headers=headers_of(**headers))


def read_record(fleet: Fleet, generation_id: str, replica: int = 0, **params: str) -> dict[str, Any]:
    response = fleet.client.get(url(fleet, generation_id, replica), params=params, headers=headers_of() | JSON)
    assert response.status_code == 200, response.text
    return response.json()


def wait_until_ended(fleet: Fleet, generation_id: str, **params: str) -> dict[str, Any]:
    def is_over() -> dict[str, Any] | None:
        record = read_record(fleet, generation_id, **params)
        return record if record["status"] not in ("queued", "running") else None

    return until(is_over, "it has ended")


def stop(fleet: Fleet, generation_id: str, replica: int = 0, **headers: str) -> httpx.Response:
    return fleet.client.delete(url(fleet, generation_id, replica), headers=headers_of(**headers))

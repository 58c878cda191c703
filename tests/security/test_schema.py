"""Does every route do what ``/openapi.json`` promises, whatever is sent to it?

schemathesis reads the schema, sends what it allows and what it forbids to real processes, and compares the answers with
it: statuses, media types, shapes, methods, and whether a key is asked for wherever the schema says so. No 500, no hang.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.security.conftest import SECRET
from tests.support import fuzzing
from tests.support.fleet import KEY, Fleet, fleet

ADMIN_KEY = "admin-of-these-tests"
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "unsupported_method", "allow_header_conformance", "ignored_auth"),
)
# With random names each request would end at an unknown model. These answer at once, in one way or another.
MODELS = ["demo/demo-n2-d0", "openai/demo-n2-d0", "anthropic/demo-n1-d0", "google-ai-studio/demo-n1-d0", "demo/demo-n3-d0-tool"]
EXEMPT = ("/metrics",)  # Prometheus' client chooses among media types by the request, beyond what a schema can say.


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {"SLUICE_SECRET": SECRET, "SLUICE_ADMIN_KEYS": ADMIN_KEY, "SLUICE_REFUSED_CREDENTIALS_MAX": "0"}
    with fleet(tmp_path_factory.mktemp("served"), **settings) as found:
        yield found


def schema_of(found: Fleet) -> dict[str, Any]:
    schema: dict[str, Any] = httpx.get(f"{found.url}/openapi.json").json()
    return schema


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that names models which exist, and no longer allows a provider's own statuses: the demo's are ours."""
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("4XX", None)
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "provider":
                    parameter["schema"] = {"type": "string", "enum": ["demo", "openai"]}
                if parameter["name"] == "cache-control":  # Its 504 is meant: RFC 9111, section 5.2.1.7.
                    parameter["schema"]["pattern"] = parameter["schema"]["pattern"].replace("only-if-cached|", "")
            if "requestBody" not in operation:
                continue
            content = operation["requestBody"]["content"]["application/json"]
            if "model" in content["schema"].get("properties", {}):
                models = ["demo-n2-d0"] if path.startswith("/api/") else MODELS
                content["schema"]["properties"]["model"] = {"type": "string", "enum": models}
                content["example"]["model"] = models[0]
    return schema


@pytest.mark.timeout(fuzzing.TIMEOUT_S)
def test_every_route_keeps_its_promises(served: Fleet, tmp_path: Path):
    (tmp_path / "schema.json").write_text(json.dumps(narrowed(schema_of(served))))
    config = f'[auth.openapi.bearer]\nbearer = "{KEY}"\n[auth.openapi.HTTPBearer]\nbearer = "{ADMIN_KEY}"\n'
    (tmp_path / "schemathesis.toml").write_text(config)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", "schemathesis.toml", "run", "schema.json"),
        *("--url", served.url, "--checks", ",".join(CHECKS), "--max-examples", str(fuzzing.EXAMPLES), "--workers", "2"),
        *("--seed", fuzzing.SEED or fuzzing.FIXED_SEED, "--generation-database", "none", "--suppress-health-check", "all"),
        *("--request-timeout", "120", "--no-color", "--warnings", "off", "--continue-on-failure"),
        *(argument for path in EXEMPT for argument in ("--exclude-path", path)),
    ]

    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    assert not served.apis[0].events("request_broke")
    assert served.apis[0].is_alive
    assert served.workers[0].is_alive


def test_every_route_is_described(served: Fleet):
    """What a route says by itself is that it answers 200 with anything."""
    for path, operations in schema_of(served)["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert len(answers) > 1, f"{method} {path} promises no error"
            assert "HTTPValidationError" not in str(answers), f"{method} {path} promises an error that nobody sends"
            is_open = path in ("/", "/livez", "/readyz", "/health", "/metrics")
            assert is_open != bool(operation.get("security")), f"{method} {path} does not say who may"


def test_the_description_of_a_body_is_what_is_read(served: Fleet):
    bodies = {
        path: operations["post"]["requestBody"]["content"]["application/json"]
        for path, operations in schema_of(served)["paths"].items()
        if "requestBody" in operations.get("post", {}) and not path.startswith("/admin")
    }

    assert len(bodies) == 7
    for path, content in bodies.items():
        body = {**content["example"], "model": "demo-n1-d0", "provider": "demo"}
        response = served.client.post(
            served.url + path.replace("{provider}", "demo"), json=body, headers={"authorization": f"Bearer {KEY}"}
        )
        assert response.status_code in (200, 202), response.text
        assert set(content["schema"]["required"]) <= body.keys()

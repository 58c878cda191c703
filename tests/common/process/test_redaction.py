"""Do secrets stay out of log lines, whatever wrote them there?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from common.access.principal import Limits
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from common.guardrails.pii import redact
from common.process.key_shapes import KEY_SHAPES, KeyShape
from common.process.redaction import REDACTED, Redactor, secrets_in, shown_url

ROOT = Path(__file__).parents[3]
LOOKS_SECRET = [
    "sk-proj-abcdefghijkl",
    "sk-ant-api03-AbCd_efgh-ijkl",
    "sk_live_0123456789abcdef",
    "gsk_0123456789abcdefghij",
    "xai-0123456789abcdefghij",
    "pplx-0123456789abcdefghij",
    "AIzaSyA0123456789abcdefghijklmnopqrstuv",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.",
]
ORDINARY = [
    "task-0123456789abcdef is done",
    "gen_0123456789abcdef0123456789abcdef",
    "req_0123456789abcdef0123456789abcdef",
    "http://127.0.0.1:8080/v1/chat/completions",
    "redis://127.0.0.1:6379/0",
    "10:30:05 in 12 ms, 5 tokens, a bearer of good news",
    "https://example.com/a:b@c",
    "/tmp/ask-me/risk-assessment-of-something",
]


@pytest.mark.parametrize("secret", LOOKS_SECRET)
@pytest.mark.parametrize("around", ["{}", "key {}, sent", '"{}"', "said\\n{}\\nand", "({})", "key={}", "'{}'", "x:{};"])
def test_what_looks_like_a_secret_is_taken_out(secret: str, around: str):
    text = Redactor()(around.format(secret))

    assert secret not in text
    assert text == around.format(REDACTED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {REDACTED}"),
        ("authorization: bearer 0123456789", f"authorization: bearer {REDACTED}"),
        ("Basic c2stdGVzdDpwYXNz", f"Basic {REDACTED}"),
        ("postgresql://sluice:hunter2@db/sluice", f"postgresql://{REDACTED}@db/sluice"),
        ("redis://:hunter2@host:6379/0", f"redis://{REDACTED}@host:6379/0"),
        (
            json.dumps({"a": "-----BEGIN PRIVATE KEY-----\nMIIE+/=\n-----END PRIVATE KEY-----\n", "b": 1}),
            json.dumps({"a": REDACTED, "b": 1}),
        ),
    ],
)
def test_a_secret_is_known_by_what_stands_around_it(text: str, expected: str):
    assert Redactor()(text) == expected


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str):
    assert Redactor()(text) == text


@pytest.mark.parametrize("shape", KEY_SHAPES, ids=lambda shape: shape.marks[0])
@given(data=st.data())
def test_what_the_guardrail_takes_for_a_key_the_log_s_filter_takes_out(shape: KeyShape, data: st.DataObject):
    """Keys that are made from the one table, for both."""
    key = data.draw(st.from_regex(shape.exact, fullmatch=True))

    assert redact(f"the key {key} was sent").counts["key"] == 1
    assert key not in Redactor()(f'{{"event": "the key {key} was sent"}}')
    assert any(mark in key for mark in shape.marks)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:urlSecret99x@127.0.0.1:1/v1", "http://…@127.0.0.1:1/v1"),
        ("https://tokenSecret99x@host/v1", "https://…@host/v1"),
        ("redis://:pa/ss@w?rd#Secret99x@host:6379/0", "redis://…@host:6379/0"),
        ("redis+sentinel://:Secret99x@a:1,b:2/main/0", "redis+sentinel://…@a:1,b:2/main/0"),
        ("https://host/keys?api_key=Secret99x", "https://host/keys?…"),
        ("postgresql://host/name?password=Secret99x", "postgresql://host/name?…"),
        ("user:Secret99x@host:6379", "host:6379"),
        ("sqlite:///sluice.db", "sqlite:///sluice.db"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
    ],
)
def test_an_address_is_shown_without_its_credentials(url: str, shown: str):
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    "url", ["redis://:pa/ss-Secret99x@host:6379/0", "https://tokenSecret99x@host/v1", "redis://u:p?x#Secret99x@host/0"]
)
def test_the_credentials_of_any_address_of_the_settings_are_known(url: str):
    settings = Settings().model_copy(update={"redis_url": url})  # Some of these are refused.

    assert "Secret99x" not in Redactor.from_settings(settings)(f"could not reach {url}")


def settings_with_secrets() -> Settings:
    return Settings(
        api_keys=(SecretStr("canary-of-a-client"),),
        admin_keys=(SecretStr("canary-of-an-admin"),),
        secret=SecretStr("canary-of-the-gateway-canary-of-the-gateway"),
        jwt_secret=SecretStr("canary-of-tokens-canary-of-tokens"),
        ai_gateway_token=SecretStr("canary-of-cloudflare"),
        providers={"openai": ProviderSettings(api_keys=(SecretStr("canary-of-a-vendor"),), limits=Limits(requests=1))},
        redis_url="redis://:canary-of-redis@127.0.0.1/0",
        database_url="postgresql://sluice:canary%2Fof-a-database@db/sluice",
    )


def test_every_secret_of_the_settings_is_known():
    found = set(secrets_in(settings_with_secrets()))

    assert found == {
        "canary-of-a-client",
        "canary-of-an-admin",
        "canary-of-the-gateway-canary-of-the-gateway",
        "canary-of-tokens-canary-of-tokens",
        "canary-of-cloudflare",
        "canary-of-a-vendor",
        "canary-of-redis",
        "canary%2Fof-a-database",
        "canary/of-a-database",
    }


def test_a_known_secret_is_taken_out_of_any_place():
    redact = Redactor.from_settings(settings_with_secrets())

    for secret in secrets_in(settings_with_secrets()):
        assert redact(f"pre{secret}post") == f"pre{REDACTED}post"


@given(st.text(min_size=8, max_size=40))
@example('quoted"and\\slashed')
@example("with a naïve accent")
@example("line\nbreak and\ttab")
def test_a_known_secret_is_found_however_json_writes_it(secret: str):
    redact = Redactor.from_settings(Settings.model_construct(ai_gateway_token=SecretStr(secret)))
    line = json.dumps({"error": secret, "nested": json.dumps({"in": [secret]})})

    assert json.loads(redact(line)) == {"error": REDACTED, "nested": json.dumps({"in": [REDACTED]})}


def test_a_short_word_is_no_secret():
    redact = Redactor.from_settings(Settings(ai_gateway_token=SecretStr("sluice")))

    assert redact("sluice_requests_total") == "sluice_requests_total"


@given(st.text(), st.sampled_from(LOOKS_SECRET), st.text())
def test_a_line_stays_json(before: str, secret: str, after: str):
    line = json.dumps({"event": "x", "text": before + " " + secret + " " + after, "n": 1})

    told = json.loads(Redactor()(line))

    assert told.keys() == {"event", "text", "n"}
    assert secret not in told["text"]


LOGS_EVERYTHING = """
import logging, sys
import structlog
from common.process.redaction import Redactor
from common.process.logging import configure_logging

canaries = sys.argv[1:]
configure_logging("api", "debug", Redactor(tuple(canaries)))
log = structlog.get_logger()
log.warning(canaries[0], field=canaries[1], deep={"list": [canaries[2], {canaries[3]: 1}]})
try:
    raise RuntimeError(f"refused {canaries[0]} and sk-proj-abcdefghijkl")
except RuntimeError:
    log.exception("broke")
    logging.getLogger("library").exception("broke on %s", canaries[1])
structlog.contextvars.bind_contextvars(bound=canaries[2])
log.info("bound")
"""


def test_no_way_into_the_log_goes_around_it():
    canaries = [f"canary-number-{n}" for n in range(4)]

    printed = _run(LOGS_EVERYTHING, *canaries).stdout

    assert "canary" not in printed
    assert "sk-proj" not in printed
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["event"] for line in lines] == [REDACTED, "broke", f"broke on {REDACTED}", "bound"]
    assert "RuntimeError: refused" in lines[1]["exception"]
    assert "RuntimeError: refused" in lines[2]["exception"]
    assert lines[3]["bound"] == REDACTED


def test_a_process_that_dies_of_an_exception_does_not_print_secrets():
    program = (
        "from common.process.redaction import Redactor\n"
        "from common.process.logging import configure_logging\n"
        "configure_logging('api', 'info', Redactor(('canary-value',)))\n"
        "raise RuntimeError('canary' + '-value and s' + 'k-proj-abcdefghijkl')\n"
    )

    died = _run(program)

    assert died.returncode == 1
    assert f"RuntimeError: {REDACTED} and {REDACTED}" in died.stderr


def _run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

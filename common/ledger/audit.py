"""How is what was asked and answered kept, so that nobody but the operator can read it?

Opt-in per key or tenant (``Access.audit``). Personal data and secrets are taken out as far as their shape gives them away
(``common/guardrails/pii.py``), then the entry is compressed and encrypted with a key made of ``SLUICE_SECRET`` and the
generation's id: a copy of the database is of no use without the secret, and an entry cannot pass for another's.
"""

import zlib
from typing import Any

import orjson
from pydantic import SecretStr

from common.access import sealing
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.groups.access import AccessSettings
from common.config.settings import MIB

_PURPOSE = b"sluice audit"
TEXT_CHARS_MAX = 100_000  # Of one string: longer ones are mostly images, and are cut.
ENTRY_BYTES_MAX = 1 * MIB  # About two seconds of looking for personal data; past it the request is left out.
DEPTH_MAX = 64  # As deep as a request may nest by default.


def check_audit_is_possible(principal: Principal, settings: AccessSettings) -> None:
    """Refuse what must be audited and cannot be: to let it pass would break what the operator has promised somebody.

    503, not 400: nothing is wrong with the request, and it will be taken once the gateway has been mended.

    Raises:
        GatewayError: INTERNAL.
    """
    if principal.is_audited and settings.secret is None:
        raise GatewayError(
            ErrorKind.INTERNAL,
            "Requests of this key are to be recorded, which this gateway cannot do now: its operator must set SLUICE_SECRET.",
            status=503,
            code="audit_unavailable",
        )


def seal(entry: dict[str, Any], generation_id: str, secret: SecretStr) -> bytes:
    """Return an entry, JSON, as it may be stored: redacted, compressed, encrypted. Takes its time: not for the loop."""
    bounded = bounded_json(entry)
    for name in ("request", "answer"):
        if len(orjson.dumps(bounded)) > ENTRY_BYTES_MAX:
            bounded[name] = f"left out: more than {ENTRY_BYTES_MAX // MIB} MiB"
    return sealing.seal(zlib.compress(orjson.dumps(redacted_json(bounded))), generation_id, secret, _PURPOSE)


def unseal(sealed: bytes, generation_id: str, *secrets: SecretStr) -> dict[str, Any]:
    """Return the entry, which one of these secrets opens.

    Raises:
        ValueError: it was sealed with another secret, or for another generation.
    """
    packed = sealing.unseal(sealed, generation_id, secrets, _PURPOSE)
    if packed is None:
        raise ValueError("the entry was sealed with another SLUICE_SECRET; SLUICE_SECRET_PREVIOUS may be the one before")
    entry: dict[str, Any] = orjson.loads(zlib.decompress(packed))
    return entry


def bounded_json(value: Any, depth: int = 0) -> Any:
    """Return JSON with every string in it cut, and no deeper than we read requests."""
    if isinstance(value, str) and len(value) > TEXT_CHARS_MAX:
        return f"{value[:TEXT_CHARS_MAX]} [{len(value) - TEXT_CHARS_MAX} characters left out]"
    if isinstance(value, dict | list) and depth >= DEPTH_MAX:
        return "[nested too deeply]"
    if isinstance(value, dict):
        return {name: bounded_json(item, depth + 1) for name, item in value.items()}
    return [bounded_json(item, depth + 1) for item in value] if isinstance(value, list) else value


def redacted_json(value: Any) -> Any:
    """Return JSON with every string, number and name in it redacted, and of JSON in a string what stands in it."""
    # Here: their tables take a while to build, and few processes ever audit.
    from common.guardrails.json_values import JsonTexts
    from common.guardrails.pii import redact

    texts = JsonTexts(value)
    texts.read()
    texts.replace([redact(text).text for text in texts.texts])
    return texts.value

"""How are requests and answers kept for audits, so that only the operator can read them?

The audit log is opt-in per key or tenant (``Access.audit``). Personal data and secrets are removed if their shape is
recognised (``common/guardrails/pii.py``). Then the entry is compressed, and encrypted with a key derived from
``SLUICE_SECRET`` and the generation's id: a copy of the database is useless without the secret, and an entry cannot be
exchanged for another generation's.
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
TEXT_CHARS_MAX = 100_000  # Of one string. Longer strings are mostly images, and are cut.
ENTRY_BYTES_MAX = 1 * MIB  # The search for personal data takes about two seconds. A larger entry loses its request.
DEPTH_MAX = 64  # As deep as a request may nest by default.


def check_audit_is_possible(principal: Principal, settings: AccessSettings) -> None:
    """Refuse a request that must be audited and cannot be. To admit it would break a promise of the operator.

    The status is 503, not 400: the request is correct, and will be accepted once the gateway is configured.

    Raises:
        GatewayError: INTERNAL.
    """
    if principal.is_audited and settings.secret is None:
        raise GatewayError(
            ErrorKind.INTERNAL,
            "Requests with this key must be recorded, which this gateway cannot do now: its operator must set SLUICE_SECRET.",
            status=503,
            code="audit_unavailable",
        )


def seal(entry: dict[str, Any], generation_id: str, secret: SecretStr) -> bytes:
    """Return a JSON entry redacted, compressed and encrypted. It is slow: do not call it in the event loop."""
    bounded = bounded_json(entry)
    for name in ("request", "answer"):
        if len(orjson.dumps(bounded)) > ENTRY_BYTES_MAX:
            bounded[name] = f"left out: more than {ENTRY_BYTES_MAX // MIB} MiB"
    return sealing.seal(zlib.compress(orjson.dumps(redacted_json(bounded))), generation_id, secret, _PURPOSE)


def unseal(sealed: bytes, generation_id: str, *secrets: SecretStr) -> dict[str, Any]:
    """Decrypt an entry with one of these secrets.

    Raises:
        ValueError: it was sealed with another secret, or for another generation.
    """
    packed = sealing.unseal(sealed, generation_id, secrets, _PURPOSE)
    if packed is None:
        raise ValueError("the entry was sealed with another SLUICE_SECRET; set the previous one as SLUICE_SECRET_PREVIOUS")
    entry: dict[str, Any] = orjson.loads(zlib.decompress(packed))
    return entry


def bounded_json(value: Any, depth: int = 0) -> Any:
    """Return JSON with long strings cut, and nested no deeper than requests may be."""
    if isinstance(value, str) and len(value) > TEXT_CHARS_MAX:
        return f"{value[:TEXT_CHARS_MAX]} [{len(value) - TEXT_CHARS_MAX} characters left out]"
    if isinstance(value, dict | list) and depth >= DEPTH_MAX:
        return "[nested too deeply]"
    if isinstance(value, dict):
        return {name: bounded_json(item, depth + 1) for name, item in value.items()}
    return [bounded_json(item, depth + 1) for item in value] if isinstance(value, list) else value


def redacted_json(value: Any) -> Any:
    """Return JSON with every string, number and name redacted. Where a string contains JSON, its values are redacted."""
    # Imported here: their tables take a while to build, and few processes audit.
    from common.guardrails.json_values import JsonTexts
    from common.guardrails.pii import redact

    texts = JsonTexts(value)
    texts.read()
    texts.replace([redact(text).text for text in texts.texts])
    return texts.value

"""How does another vendor's reasoning travel through a client of OpenAI's responses?

Such a client sends reasoning items back unchanged, and an item has one field that only its creator reads:
``encrypted_content``. It carries what a vendor signed or encrypted (Anthropic's signatures, Gemini's signatures of calls,
redacted blocks), after a prefix that distinguishes it from OpenAI's own content. We encrypt nothing, and need not: the
vendor checks what comes back. The text of signed reasoning is the item's summary.
"""

from common.canonical.generation import ReasoningPart

_SIGNED = "sluice-signed:"
_REDACTED = "sluice-redacted:"


def wrap(*, signature: str | None = None, redacted: str | None = None) -> str | None:
    """
    >>> wrap(signature="abc")
    'sluice-signed:abc'
    """
    if redacted is not None:
        return _REDACTED + redacted
    return None if signature is None else _SIGNED + signature


def unwrap(encrypted_content: str) -> ReasoningPart:
    """Return the signature or encrypted block that ``wrap`` stored, without text; an empty part for other content.

    >>> unwrap("sluice-signed:abc").signature
    'abc'
    """
    if encrypted_content.startswith(_SIGNED):
        return ReasoningPart(signature=encrypted_content.removeprefix(_SIGNED))
    if encrypted_content.startswith(_REDACTED):
        return ReasoningPart(redacted=encrypted_content.removeprefix(_REDACTED))
    return ReasoningPart()


def is_wrapped(encrypted_content: object) -> bool:
    """Whether ``wrap`` created this content. OpenAI would refuse it."""
    return isinstance(encrypted_content, str) and encrypted_content.startswith((_SIGNED, _REDACTED))

"""How does another vendor's thinking travel through a client of OpenAI's responses?

Such a client brings reasoning items back as they came, and an item has one field that nobody but its maker reads:
``encrypted_content``. What a vendor signed or encrypted (Anthropic's signatures, Gemini's of a call, redacted blocks) goes
there, behind a mark that tells it from OpenAI's own. Nothing is encrypted by us, and nothing needs to be: the vendor
checks what comes back. The text of signed thinking is the item's summary.
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
    """Return what ``wrap`` put in, with no text yet; an empty part for what is not ours.

    >>> unwrap("sluice-signed:abc").signature
    'abc'
    """
    if encrypted_content.startswith(_SIGNED):
        return ReasoningPart(signature=encrypted_content.removeprefix(_SIGNED))
    if encrypted_content.startswith(_REDACTED):
        return ReasoningPart(redacted=encrypted_content.removeprefix(_REDACTED))
    return ReasoningPart()


def is_wrapped(encrypted_content: object) -> bool:
    """Whether an item's content is ours, so that OpenAI would refuse it."""
    return isinstance(encrypted_content, str) and encrypted_content.startswith((_SIGNED, _REDACTED))

"""What if a secret gets into a log line all the same?

No line is meant to hold one; this is the net below. Each finished line is looked through for the values of the settings'
secrets and for what looks like a secret of anybody's, whichever field, exception or library it came from. The line is
text by then, so nothing in it is missed, and nothing has to be walked.

Most lines hold nothing: so each value and each shape's own mark is first looked for as a plain substring, which takes a few
dozen nanoseconds, and an expression runs only where its mark is there. See ``bench/redaction.py``.
"""

import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

from pydantic import BaseModel, SecretStr

from common.process.key_shapes import KEY_SHAPES, TOKEN_WIDE

REDACTED = "[redacted]"
SECRET_CHARS_MIN = 8  # What is shorter is a word like any other, and would be blotted out of words.

_PATH = re.compile("[/?#]")
# Where a secret may begin: not inside a word, but behind a line break's ``\n`` as JSON writes it.
_START = r"(?:(?<![A-Za-z0-9_])|(?<=\\[nrt]))"
# No repetition can be cut in two ways, and none begins inside what another begun before it would have run through: so the
# time taken grows as the text does, whatever the text is.
_SHAPES: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (marks, re.compile(pattern))
    for marks, pattern in [
        *((shape.marks, _START + shape.wide) for shape in KEY_SHAPES),
        # Wider than a guardrail may look for: a log has few words that begin so.
        (("sk_",), _START + r"sk_[A-Za-z0-9_-]{8,}"),
        (("eyJ",), r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))" + TOKEN_WIDE),
        (("gAAAA",), _START + r"gAAAA[A-Za-z0-9_=-]{32,}"),  # What Fernet encrypted: of no use, and no more is it here.
        # The scheme stays: it says what was there.
        (("earer ", "EARER "), r"(?<=[Bb]earer )[^\s\"'\\,;]{4,}|(?<=BEARER )[^\s\"'\\,;]{4,}"),
        (("asic ",), r"(?<=[Bb]asic )[A-Za-z0-9+/=]{8,}"),
        # The password of an address.
        (("://",), r"(?<=://)[^\s\"'\\/@:]{0,256}:[^\s\"'\\/@]{1,256}(?=@)"),
        (("PRIVATE KEY-----",), r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^\"\\]|\\[^\"])*"),
    ]
)


@dataclass(frozen=True, slots=True)
class Redactor:
    """Takes secrets out of text; ``values`` are those that are known, the longest first."""

    values: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        # Hot path: once per log line.
        for value in self.values:
            if value in text:
                text = text.replace(value, REDACTED)
        for marks, pattern in _SHAPES:
            for mark in marks:
                if mark in text:
                    text = pattern.sub(REDACTED, text)
                    break
        return text

    @classmethod
    def from_settings(cls, settings: BaseModel) -> "Redactor":
        """Return one that knows every secret of the settings, as it is and as it may be written in JSON or in an address."""
        written = {form for secret in secrets_in(settings) for form in _forms(secret)}
        return cls(tuple(sorted(written, key=len, reverse=True)))


def secrets_in(value: Any) -> Iterator[str]:
    """Yield every secret of the settings: what is typed as one, and the passwords of addresses."""
    match value:
        case SecretStr():
            yield value.get_secret_value()
        case str():
            yield from _password_in(value)
        case BaseModel():
            yield from _secrets_in_all(getattr(value, name) for name in type(value).model_fields)
        case dict():
            yield from _secrets_in_all(value.values())
        case list() | tuple() | set() | frozenset():
            yield from _secrets_in_all(value)


def _secrets_in_all(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        yield from secrets_in(value)


def shown_url(url: str) -> str:
    """Return an address as it may be printed: without user, password and query, any of which may be a credential.

    >>> shown_url("redis://:pa/ss@host:6379/0?x=1")
    'redis://…@host:6379/0?…'
    """
    scheme, mark, remainder = url.partition("://")
    if not mark:
        return url.rpartition("@")[2].partition("?")[0]
    _, separator, remainder = remainder.rpartition("@")  # The last one: a password may hold any sign, though it should not.
    address, query, _ = remainder.partition("?")
    return f"{scheme}://{'…@' if separator else ''}{address}{'?…' if query else ''}"


def _password_in(address: str) -> Iterator[str]:
    """Yield the password of an address, and a user without one, which is a token; as written and as meant."""
    _, mark, remainder = address.partition("://")
    authority = _PATH.split(remainder, maxsplit=1)[0]  # urlsplit would refuse some that others take.
    for text in {authority, remainder} if mark else ():
        user, colon, password = text.rpartition("@")[0].partition(":")
        if secret := password if colon else user:
            yield secret
            yield unquote(secret)


def _forms(secret: str) -> set[str]:
    if len(secret) < SECRET_CHARS_MIN:
        return set()
    as_json = json.dumps(secret)[1:-1]
    return {secret, as_json, json.dumps(as_json)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")}


def redact_tracebacks(redact: Redactor) -> None:
    """Have the traceback of an exception that ends this process printed without secrets."""

    def print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = print_redacted

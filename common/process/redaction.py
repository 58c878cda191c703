"""How are secrets removed from log lines?

No log line should contain a secret; this is the safety net. Each finished line is searched for the values of the settings'
secrets, and for text that looks like a secret, whichever field, exception or library it came from. The line is plain text by
then, so the search covers all of it and needs no traversal of objects.

Most lines contain no secret. So each value and each shape's mark is first searched as a plain substring, which takes a few
dozen nanoseconds. An expression runs only if its mark is in the line. See ``bench/redaction.py``.
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
SECRET_CHARS_MIN = 8  # A shorter secret may be part of ordinary words, which would be redacted.

_PATH = re.compile("[/?#]")
# Where a secret may begin: not inside a word, but after the ``\n`` that JSON writes for a line break.
_START = r"(?:(?<![A-Za-z0-9_])|(?<=\\[nrt]))"
# No repetition can match in two ways, and no match starts inside text that an earlier match attempt has already scanned. So the
# time grows linearly with the text.
_SHAPES: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (marks, re.compile(pattern))
    for marks, pattern in [
        *((shape.marks, _START + shape.wide) for shape in KEY_SHAPES),
        # Wider than a guardrail's pattern may be: few words in a log begin like this.
        (("sk_",), _START + r"sk_[A-Za-z0-9_-]{8,}"),
        (("eyJ",), r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))" + TOKEN_WIDE),
        (("gAAAA",), _START + r"gAAAA[A-Za-z0-9_=-]{32,}"),  # Text that Fernet encrypted: useless in a log.
        # The scheme stays, so that a reader sees what was redacted.
        (("earer ", "EARER "), r"(?<=[Bb]earer )[^\s\"'\\,;]{4,}|(?<=BEARER )[^\s\"'\\,;]{4,}"),
        (("asic ",), r"(?<=[Bb]asic )[A-Za-z0-9+/=]{8,}"),
        # The password in a URL.
        (("://",), r"(?<=://)[^\s\"'\\/@:]{0,256}:[^\s\"'\\/@]{1,256}(?=@)"),
        (("PRIVATE KEY-----",), r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^\"\\]|\\[^\"])*"),
    ]
)


@dataclass(slots=True)
class Redactor:
    """Replaces secrets in text. ``values`` are the known secrets, the longest first. ``learn`` replaces them."""

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
        """Return a redactor that knows every secret of the settings, also in the forms that JSON or a URL give it."""
        redactor = cls()
        redactor.learn(settings)
        return redactor

    def learn(self, *settings: BaseModel) -> None:
        """Know the secrets of these settings, and no others."""
        written = {form for each in settings for secret in secrets_in(each) for form in _forms(secret)}
        self.values = tuple(sorted(written, key=len, reverse=True))


def secrets_in(value: Any) -> Iterator[str]:
    """Yield every secret in the settings: values of type ``SecretStr``, and passwords in URLs."""
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
    """Return a URL that may be printed: without user, password and query, because any of these may be a credential.

    >>> shown_url("redis://:pa/ss@host:6379/0?x=1")
    'redis://…@host:6379/0?…'
    """
    scheme, mark, remainder = url.partition("://")
    if not mark:
        return url.rpartition("@")[2].partition("?")[0]
    _, separator, remainder = remainder.rpartition("@")  # The last @: a password may contain one, though it should not.
    address, query, _ = remainder.partition("?")
    return f"{scheme}://{'…@' if separator else ''}{address}{'?…' if query else ''}"


def _password_in(address: str) -> Iterator[str]:
    """Yield the password in a URL, or the user if there is no password (it is a token), both as written and unquoted."""
    _, mark, remainder = address.partition("://")
    authority = _PATH.split(remainder, maxsplit=1)[0]  # urlsplit refuses some URLs that others accept.
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
    """Print the traceback of an exception that ends this process without secrets."""

    def print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = print_redacted

"""Which values may a setting have? These are the types of settings that are more than a number or a text.

Each type refuses a value that cannot work before the process starts, and its message says what the value must be. Messages
never quote a URL, because it may contain a password.
"""

import inspect
import re
import unicodedata
from typing import Annotated, Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from common.access.principal import Origin

KIB, MIB, GIB = 1024, 1024**2, 1024**3
DAY_S = 86_400
PORT_MAX = 65_535
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
DATABASE_SCHEMES = ("sqlite", "sqlite+aiosqlite", "postgresql", "postgres", "postgresql+asyncpg")
_HOST = re.compile(r"[^\s/@?#]+")
_QUOTES = "\"'"
ELLIPSIS = "…"
# What documentation writes where a key belongs. A key that is made by chance has none of this.
_PLACEHOLDER = re.compile(
    r"…|\.\.\.|\*{3}|[-_]x{6}|^<.*>$|^\[.*\]$|\{\{|\$\{"
    r"|(^|[^a-z0-9])(your|placeholder|change[-_]?me|replace[-_]?me)([^a-z0-9]|$)",
    re.IGNORECASE,
)


def _split_commas(value: Any) -> Any:
    """Split at commas. An empty text is an empty list. A text with commas only is refused: an empty list might allow more."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if value.strip() and not parts:
        raise ValueError("it has only commas and no values")
    return parts


def _sendable(key: SecretStr) -> SecretStr:
    """Return a key that can be sent in a header.

    Raises:
        ValueError
    """
    text = key.get_secret_value()
    if ELLIPSIS in text:
        refuse_placeholder(text)
    if len(text) > 1 and text[0] in _QUOTES and text[0] == text[-1]:
        raise ValueError("it must not have quotes around it: remove them")
    wrong = next((at for at, char in enumerate(text, 1) if not " " <= char <= "~"), None)
    if wrong:
        raise ValueError(f"a key must be of printable ASCII characters, but character {wrong} is {_named(text[wrong - 1])}")
    if text != text.strip() or not text:
        raise ValueError("a key must be a text without blanks around it")
    return key


def _own(key: SecretStr) -> SecretStr:
    """Return a key that we give out. Everybody knows the placeholders of documentation, so none is one."""
    refuse_placeholder(key.get_secret_value())
    return key


def is_placeholder(text: str) -> bool:
    """Whether this is what documentation writes in place of a key or a secret. A provider's key that is one is only a doubt: it
    may stand in an example of settings of which only some are used.
    """
    return _PLACEHOLDER.search(text) is not None


def refuse_placeholder(text: str) -> None:
    """Refuse what documentation writes in place of a key or a secret.

    Raises:
        ValueError: it quotes no more than the character that no key has.
    """
    if found := _PLACEHOLDER.search(text):
        mark = found[0] if found[0] in (ELLIPSIS, "...", "***") else ""
        shown = f" (it has {_named(mark) if len(mark) == 1 else mark})" if mark else ""
        raise ValueError(f"this looks like the placeholder of a documentation{shown}: put your own in its place")


def _named(char: str) -> str:
    """Return a character as a message can show it: ``U+2026, HORIZONTAL ELLIPSIS``."""
    name = {"\n": "LINE FEED", "\r": "CARRIAGE RETURN", "\t": "TAB"}.get(char) or unicodedata.name(
        char, "no printable character"
    )
    return f"U+{ord(char):04X}, {name}"


def _split_origins(value: Any) -> Any:
    return [_trim_slash(origin) for origin in value] if isinstance(value := _split_commas(value), list | tuple) else value


def _trim_slash(value: Any) -> Any:
    return value.rstrip("/") if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _split(text: str) -> SplitResult:
    """Return a URL's parts. Raises ValueError, for an invalid port too."""
    if re.match(r"[^/]*//[^/]*\s", text) or text != text.strip():
        raise ValueError("it must be a URL without spaces")
    try:
        parts = urlsplit(text)
        port = None if "," in parts.netloc else parts.port
    except ValueError as error:
        raise ValueError("its host or port cannot be read: a port is a number from 1 to 65535") from error
    if port == 0:
        raise ValueError("its port must be a number from 1 to 65535")
    return parts


def _http_url(text: str) -> str:
    parts = _split(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must begin with http:// or https:// and a host, such as https://gateway.example/v1")
    return text


def _without_login(text: str) -> str:
    """Refuse a user and a password: no request can be made with them, and an address is shown in clear, unlike a key."""
    if "@" in urlsplit(text).netloc:
        raise ValueError("it must not have a user or a password before the host: put the key into api_keys")
    return text


def _redis_url(text: str) -> str:
    parts = _split(text)
    if parts.scheme not in REDIS_SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in REDIS_SCHEMES)
        raise ValueError(f"it must begin with one of {schemes}, such as redis://127.0.0.1:6379/0")
    first, _, second = parts.path.strip("/").partition("/")
    if parts.scheme == "unix":
        if not first:
            raise ValueError("it must name the file of a socket, such as unix:///run/redis/redis.sock?db=0")
    elif "+sentinel" in parts.scheme:
        hosts = parts.netloc.rpartition("@")[2].split(",")
        if not (first and all(map(_is_sentinel, hosts)) and _is_number(second or "0")):
            raise ValueError("it must be like redis+sentinel://host:26379,host:26379/service or …/service/0")
    elif not parts.hostname or second or not _is_number(first or "0"):
        raise ValueError("it must be like redis://host:6379/0: a host, and the number of a database")
    if parts.query:
        _check_redis_query(text)
    return text


def _check_redis_query(text: str) -> None:
    from redis.asyncio.connection import Connection, parse_url  # Imported here: few URLs have a query, few commands use Redis.

    try:
        options: dict[str, Any] = dict(parse_url(text.replace("+sentinel", "")))
        options.pop("connection_class", Connection)(**options)  # It connects later.
    except (ValueError, TypeError) as error:
        raise ValueError("the part after the ? is not valid: use parameters of redis-py, such as ?db=0") from error


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_sentinel(text: str) -> bool:
    host, colon, port = text.rpartition(":") if ":" in text.rpartition("]")[2] else (text, "", "")
    return bool(_HOST.fullmatch(host)) and (not colon or (_is_number(port) and 1 <= int(port) <= PORT_MAX))


def _database_url(text: str) -> str:
    parts = _split(text)
    if parts.scheme not in DATABASE_SCHEMES:
        raise ValueError("it must be like sqlite:///FILE or postgresql://USER@HOST/NAME")
    name = parts.path.strip("/")
    if parts.scheme.startswith("sqlite"):
        if parts.netloc or name in ("", ":memory:"):
            raise ValueError("it must name a file that all processes share, such as sqlite:////var/lib/sluice.db")
    elif not name:
        raise ValueError("it must name a database: postgresql://USER@HOST/NAME")
    elif parts.query:
        _check_asyncpg_query(parts.query)
    return text


def _check_asyncpg_query(query: str) -> None:
    import asyncpg  # Imported here, because few URLs have a query.

    parameters = {*inspect.signature(asyncpg.connect).parameters, "prepared_statement_cache_size"}
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name not in parameters:
            hint = "asyncpg calls it ssl, as in ?ssl=require" if name == "sslmode" else "asyncpg has no such parameter"
            raise ValueError(f"it must not have {name!r} after the ?: {hint}")


Port = Annotated[int, Field(ge=1, le=PORT_MAX)]
PortOrFree = Annotated[int, Field(ge=0, le=PORT_MAX)]  # 0: any free port.
Wait = Annotated[float, Field(ge=0.01, le=7 * DAY_S)]  # Redis counts milliseconds: less would become 0.
Kept = Annotated[float, Field(ge=0.01, le=366 * DAY_S)]  # In Redis.
CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
Key = Annotated[SecretStr, AfterValidator(_sendable)]
SecretCommaList = Annotated[tuple[Annotated[Key, AfterValidator(_own)], ...], NoDecode, BeforeValidator(_split_commas)]
Origins = Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split_origins)]
Keys = Annotated[tuple[Key, ...], BeforeValidator(_split_commas)]
HttpUrl = Annotated[str, BeforeValidator(_trim_slash), AfterValidator(_http_url)]
ProviderUrl = Annotated[HttpUrl, AfterValidator(_without_login)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
Lowered = BeforeValidator(_lower)

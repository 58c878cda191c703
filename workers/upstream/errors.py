"""What does a failure between a worker and a provider mean?

Each cause has a message for the client, which names no address of the operator; one word for metrics and log (``cause``); and
the transport's own text, only for the log (``detail``). A request without an answer may be sent again. An unreadable answer
would come again and be paid again, so its code is ``UNREADABLE``, and the next deployment is called at once.
"""

import asyncio
import errno
import re
import socket
import ssl
from urllib.parse import urlsplit

import aiohttp

from common.canonical.errors import ErrorKind, GatewayError
from common.config.proxies import Proxy, ProxyUnusable
from common.process.event_loop import Loop
from workers.providers.shared.errors import UNREADABLE

TRANSPORT = (aiohttp.ClientError, TimeoutError, OSError, ValueError)  # ValueError: not a valid URL, or not a valid name.

_DETAIL_CHARS_MAX = 300
_LOCATION_CHARS_MAX = 200
# A name with a top-level domain that may be public: not an IP address, and not a name of a private network.
_PUBLIC_NAME = re.compile(r"(?:[\w-]+\.)+(?!(?:local|localhost|internal|intranet|lan|corp|home|svc)$)[a-z][a-z0-9-]+", re.ASCII)
_QUOTED = re.compile(r"\bb['\"].*|\n.*", re.DOTALL)  # Text that the other side sent: it may repeat a prompt or a key.
_URL = re.compile(r"\bhttps?://\S+")  # A URL may contain a key.
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
# Source: OpenSSL's x509_vfy.h.
_CERTIFICATE = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is self-signed",
    19: "its issuer is not known here",
    20: "its issuer is not known here",
    21: "its issuer is not known here",
    62: "it was issued for another name",
    64: "it was issued for another address",
}
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE")
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_CONNECTING = {
    errno.ECONNREFUSED: ("refused", "it refused the connection"),
    errno.EHOSTUNREACH: ("unreachable", "there is no route to it"),
    errno.ENETUNREACH: ("unreachable", "there is no route to it"),
    errno.ETIMEDOUT: ("connect_timeout", "it did not answer in time"),
}


class UpstreamFailure(GatewayError):
    """``cause`` is one of a few words, for metrics and log. ``detail`` is only for the log."""

    def __init__(self, kind: ErrorKind, message: str, code: str, cause: str, detail: str = "") -> None:
        super().__init__(kind, message, code=code)
        self.cause = cause
        self.detail = detail


def without_answer(
    error: Exception, provider: str, host: str, connect_timeout_s: float, proxy: Proxy | None
) -> UpstreamFailure:
    """Return the failure if no head of an answer came. ``host``: the host of the connection; with a proxy, the proxy's host."""
    failure = _without_answer(error, _who(error, provider, host, proxy), host, connect_timeout_s)
    if proxy:
        failure.detail = f"{failure.detail} (proxy {proxy.host})"
    return failure


def _who(error: Exception, provider: str, host: str, proxy: Proxy | None) -> str:
    """Return the subject of the message: if the proxy cannot be reached, that says nothing about the provider."""
    if proxy is None:
        return f"The provider {provider}"
    if isinstance(error, aiohttp.ConnectionTimeoutError) or (
        isinstance(error, aiohttp.ClientConnectorError) and error.host == host
    ):
        return f"The gateway's proxy, which leads to the provider {provider},"
    return f"The provider {provider}, behind the gateway's proxy,"


def _without_answer(error: Exception, subject: str, host: str, connect_timeout_s: float) -> UpstreamFailure:
    match error:
        case ProxyUnusable():
            return _unreachable(subject, "the gateway's proxy settings cannot be used", "proxy", str(error))
        case aiohttp.ConnectionTimeoutError():
            return _connect_timed_out(subject, host, connect_timeout_s)
        case aiohttp.ClientHttpProxyError():
            return _proxy_refused(subject, error.status)
        case aiohttp.ClientResponseError():
            return _malformed(error, subject)
        case aiohttp.ClientConnectorError():  # Before ValueError: a certificate error is both.
            cause, reason_text = _connecting(error)
            return _unreachable(subject, reason_text, cause, detail_of(error))
        case ValueError() | aiohttp.NonHttpUrlClientError():
            reason = (error.__cause__ or "not an HTTP URL") if isinstance(error, aiohttp.ClientError) else error
            return _unreachable(subject, "its base URL is not valid", "base_url", _clean(str(reason)))
        case _:
            return _broken_off(subject, "before it answered", "closed", error)


def within_answer(error: Exception, provider: str) -> UpstreamFailure:
    """Return the failure if the body of an answer could not be read to its end."""
    subject = f"The provider {provider}"
    text = f"{error} {error.__cause__ or ''}"
    if "ecod" in text and "encoding" in text:
        return _unreadable(subject, "in a content encoding that cannot be read", "encoding", detail_of(error))
    if isinstance(error, aiohttp.ClientResponseError) or "Invalid character" in text:
        return _unreadable(subject, "with HTTP that cannot be read", "http", detail_of(error))
    return _broken_off(subject, "before its answer was complete", "cut", error)


def timed_out(provider: str, silence_s: float | None) -> UpstreamFailure:
    """Return the failure of a provider that sent nothing for too long. ``silence_s`` None: it had not begun to answer."""
    if silence_s is None:
        problem, cause = "did not begin to answer in time", "first_token_timeout"
    else:
        problem, cause = f"sent nothing for {silence_s:g} s in the middle of its answer", "silence"
    return UpstreamFailure(ErrorKind.UPSTREAM_TIMEOUT, f"The provider {provider} {problem}.", "upstream_timeout", cause)


def proxy_refused(provider: str, proxy: Proxy, status: int) -> UpstreamFailure:
    failure = _proxy_refused(f"The provider {provider}, behind the gateway's proxy,", status)
    failure.detail = f"{failure.detail} (proxy {proxy.host})"
    return failure


def _proxy_refused(subject: str, status: int) -> UpstreamFailure:
    return _unreachable(subject, f"the proxy refused with status {status}", "proxy", f"status {status} of the proxy")


def redirected(provider: str, status: int, location: str) -> UpstreamFailure:
    """Return the failure of a redirect. Its address is shown without the query, which may contain a secret.

    Clients see the address only if its name is public. The log always has it.
    """
    try:
        parts = urlsplit(location)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path
        is_public = _PUBLIC_NAME.fullmatch(parts.hostname or "") is not None
    except ValueError:
        address, is_public = "", False
    where = _UNPRINTABLE.sub("", address)[:_LOCATION_CHARS_MAX]
    to = f"to {where} " if is_public else ""
    message = (
        f"The provider {provider} redirects {to}(status {status}). The gateway does not follow redirects: "
        "its base URL must be the final address."
    )
    return UpstreamFailure(ErrorKind.UPSTREAM_PROTOCOL, message, UNREADABLE, "redirect", f"status {status} to {where}")


def unreadable(provider: str, problem: str, cause: str, detail: str = "") -> UpstreamFailure:
    """Return the failure of an answer that came but cannot be read."""
    return _unreadable(f"The provider {provider}", problem, cause, detail)


def _unreadable(subject: str, problem: str, cause: str, detail: str) -> UpstreamFailure:
    return UpstreamFailure(ErrorKind.UPSTREAM_PROTOCOL, f"{subject} answered {problem}.", UNREADABLE, cause, _clean(detail))


def _unreachable(subject: str, reason_text: str, cause: str, detail: str) -> UpstreamFailure:
    message = f"{subject} could not be reached: {reason_text}."
    return UpstreamFailure(ErrorKind.UPSTREAM_UNAVAILABLE, message, "upstream_unavailable", cause, detail)


def _broken_off(subject: str, when: str, cause: str, error: Exception) -> UpstreamFailure:
    message = f"{subject} closed the connection {when}."
    return UpstreamFailure(ErrorKind.UPSTREAM_UNAVAILABLE, message, "upstream_unavailable", cause, detail_of(error))


def detail_of(error: BaseException) -> str:
    """Return the transport's own text: bounded, on one line, without URLs and without text from the other side."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection" if isinstance(error.message, str) else "it was closed within the headers"
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    if error.__cause__ is not None and not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientResponseError):
        text += f" ({type(error.__cause__).__name__}: {error.__cause__})"
    return _clean(f"{type(error).__name__}: {text}")


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub(" ", _URL.sub("...", _QUOTED.sub("...", text)))[:_DETAIL_CHARS_MAX].strip()


def _connect_timed_out(subject: str, host: str, connect_timeout_s: float) -> UpstreamFailure:
    loop = asyncio.get_running_loop()
    is_resolving = isinstance(loop, Loop) and loop.is_resolving(host)
    problem = "its name was not resolved" if is_resolving else "it did not accept a connection"
    message = f"{subject} could not be reached: {problem} within {connect_timeout_s:g} s."
    cause = "name_timeout" if is_resolving else "connect_timeout"
    return UpstreamFailure(ErrorKind.UPSTREAM_TIMEOUT, message, "upstream_timeout", cause, host)


def _connecting(error: aiohttp.ClientConnectorError) -> tuple[str, str]:
    """Return the cause and the text for the message."""
    reason = error.os_error
    if isinstance(reason, ssl.SSLCertVerificationError):
        reason_text = _CERTIFICATE.get(reason.verify_code, "it cannot be verified")
        return "certificate", f"its certificate is not trusted ({reason_text})"
    if isinstance(reason, ssl.SSLError):
        if reason.reason in _NOT_TLS:
            return "tls", "its port does not speak TLS; check whether its base URL must begin with http://"
        return "tls", "no TLS connection could be made"
    if isinstance(reason, socket.gaierror):
        if reason.errno in _NO_SUCH_NAME:
            return "name_not_found", "its name was not found"
        return "name_not_resolved", "its name cannot be resolved at the moment"
    return _CONNECTING.get(reason.errno or 0, ("connect", "no connection could be made"))


def _malformed(error: aiohttp.ClientResponseError, subject: str) -> UpstreamFailure:
    """Return the failure of an answer whose head could not be parsed. aiohttp's message says why, and quotes the head."""
    text, detail = error.message, detail_of(error)
    if text.startswith(("Got more than", "Too many headers")):
        return _unreadable(subject, "with headers that are too large: 64 KiB each and 128 in all are taken", "headers", detail)
    if "content-encoding" in text.lower():
        return _unreadable(subject, "in a content encoding that was not asked for and cannot be read", "encoding", detail)
    if text.startswith("Bad status line"):
        is_tls = "\\x15\\x03" in text
        problem = (
            "in TLS: its base URL must begin with https://" if is_tls else "in something that is not HTTP: check its base URL"
        )
        return _unreadable(subject, problem, "not_http", detail)
    return _unreadable(subject, f"with HTTP that cannot be read ({_clean(text).partition(':')[0]})", "http", detail)

"""Is the proxy that leads to an address found as other tools find it?"""

import pytest

from common.config.proxies import Proxy, ProxyUnusable, missing_certificates, proxy_for
from common.config.settings import Settings

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
PROXY = "http://proxy.corp:3128"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in (*NAMES, *(name.upper() for name in NAMES), "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


def host_for(url: str) -> str | None:
    proxy = proxy_for(url, Settings())
    return proxy.host if proxy else None


@pytest.mark.parametrize(
    ("variable", "reached"),
    [
        ("HTTP_PROXY", ["http"]),
        ("http_proxy", ["http"]),
        ("HTTPS_PROXY", ["https"]),
        ("ALL_PROXY", ["http", "https"]),
        ("all_proxy", ["http", "https"]),
    ],
)
def test_each_variable_stands_for_its_schemes(monkeypatch, variable, reached):
    monkeypatch.setenv(variable, PROXY)

    found = [scheme for scheme in ("http", "https") if host_for(f"{scheme}://api.example/v1")]

    assert found == reached


def test_a_scheme_of_its_own_goes_before_all(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("ALL_PROXY", "socks5://other:1080")

    assert host_for("https://api.example/v1") == "proxy.corp:3128"


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_direct"),
    [
        ("*", "api.example", True),
        ("api.example", "api.example", True),
        ("API.example", "api.EXAMPLE", True),
        ("example", "api.example", True),
        (".example", "api.example", True),
        ("*.example", "api.example", True),
        ("other, .svc ,", "llm.lab.svc", True),
        ("other .svc", "llm.lab.svc", True),
        ("ample", "api.example", False),
        ("api.example.org", "api.example", False),
        ("api.example:8443", "api.example:8443", True),
        ("api.example:8443", "api.example:443", False),
        ("10.0.0.0/8", "10.1.2.3:8000", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3:8000", True),
        ("fd00::/8", "[fd00::1]:8000", True),
        ("::1", "[::1]:8000", True),
        ("[::1]", "[::1]", True),
        ("", "api.example", False),
        (" , ", "api.example", False),
    ],
)
def test_what_is_reached_directly(monkeypatch, no_proxy, host, is_direct):
    monkeypatch.setenv("ALL_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)

    assert (host_for(f"https://{host}/v1") is None) is is_direct


def test_without_variables_and_when_switched_off_everything_is_reached_directly(monkeypatch):
    assert host_for("https://api.example/v1") is None

    monkeypatch.setenv("HTTPS_PROXY", PROXY)

    assert proxy_for("https://api.example/v1", Settings(proxy_from_env=False)) is None


@pytest.mark.parametrize(
    ("value", "proxy"),
    [
        ("proxy.corp:3128", Proxy("http://proxy.corp:3128", "proxy.corp:3128")),
        ("http://proxy.corp", Proxy("http://proxy.corp:80", "proxy.corp:80")),
        ("https://proxy.corp/", Proxy("https://proxy.corp:443", "proxy.corp:443")),
        ("http://[::1]:3128", Proxy("http://[::1]:3128", "[::1]:3128")),
        ("http://me:p%40ss@proxy.corp:1", Proxy("http://proxy.corp:1", "proxy.corp:1", "Basic bWU6cEBzcw==")),
    ],
)
def test_how_a_proxy_may_be_written(monkeypatch, value, proxy):
    monkeypatch.setenv("HTTPS_PROXY", value)

    found = proxy_for("https://api.example/v1", Settings())

    assert found == proxy
    assert "bWU6" not in repr(found)


@pytest.mark.parametrize(
    "value", ["socks5://u:secret-word@h:1", "socks5h://h", "ftp://h", "http://", "http://h:port", "http://["]
)
def test_what_cannot_be_used_is_refused_and_not_passed_by(monkeypatch, value):
    monkeypatch.setenv("ALL_PROXY", value)

    with pytest.raises(ProxyUnusable, match="ALL_PROXY") as raised:
        proxy_for("https://api.example/v1", Settings())

    assert "secret-word" not in str(raised.value)


def test_a_request_header_is_no_setting(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("REQUEST_METHOD", "GET")  # Under CGI the header Proxy arrives in this variable.

    assert host_for("http://api.example/v1") is None


def test_certificates_that_are_not_there_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}/none:{tmp_path}")

    assert missing_certificates() == {"SSL_CERT_FILE": str(tmp_path / "none.pem")}

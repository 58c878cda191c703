"""Do the libraries have what the product takes from them, and is what is installed what was tried?"""

import ast
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from aiohttp.client_proto import ResponseHandler
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.sources import private_parts
from tests.support.sources.private_parts import ROOT, Use
from workers.upstream import connecting

# Each private attribute of a library that we use, and where it is. They may go with any new version, so they are few.
PRIVATE = {
    # Its thread is waited for before the event loop may close.
    Use("common.database.engine", "connection", "_thread"): "aiosqlite.Connection",
    # Claims by script and waits for a bell, instead of arq's polling.
    Use("common.queue.worker", "arq.worker.Worker", "_poll_iteration"): "arq.worker.Worker",
    # A connection whose handshake redis-py has made is taken over from it.
    Use("common.redis.pipe", "connection", "_reader"): "redis.asyncio.connection.AbstractConnection",
    Use("common.redis.pipe", "connection", "_writer"): "redis.asyncio.connection.AbstractConnection",
    # aiohttp looks after each read for what a pause left behind; we only after a pause.
    Use(
        "workers.upstream.connecting", "aiohttp.client_proto.ResponseHandler", "_buffer_paused"
    ): "aiohttp.client_proto.ResponseHandler",
    Use(
        "workers.upstream.connecting", "aiohttp.client_proto.ResponseHandler", "_reading_paused"
    ): "aiohttp.client_proto.ResponseHandler",
    Use("workers.upstream.connecting", "aiohttp.connector.BaseConnector", "_factory"): "aiohttp.TCPConnector",
    # The pool's idle connections, of which one that was found dead takes the older ones along.
    Use("workers.upstream.connecting", "aiohttp.connector.BaseConnector", "_conns"): "aiohttp.TCPConnector",
    Use("workers.upstream.connecting", "aiohttp.connector.BaseConnector", "_get"): "aiohttp.TCPConnector",
    # A request of which the parser knows less than we do is given to the app as uvicorn gives its own.
    Use("api.server.connection", "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol", "_start_asgi_task"): (
        "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol"
    ),
    Use("api.server.connection", "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol", "_unset_keepalive_if_required"): (
        "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol"
    ),
    Use(
        "api.server.request_bounds", "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol", "_unset_keepalive_if_required"
    ): ("uvicorn.protocols.http.httptools_impl.HttpToolsProtocol"),
    # A connection that is older than it may be is not given back to the pool.
    Use("workers.upstream.connecting", "aiohttp.connector.BaseConnector", "_release"): "aiohttp.TCPConnector",
    # Variables are trimmed, and may name a file.
    Use("common.config.setting_sources", "pydantic_settings.sources.providers.env.EnvSettingsSource", "_load_env_vars"): (
        "pydantic_settings.EnvSettingsSource"
    ),
}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["embedded"], *EXTRAS["dev"]]]
PINNED = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def test_every_private_attribute_of_a_library_is_listed_with_its_reason():
    found = private_parts.all_uses()

    assert found - PRIVATE.keys() == set(), "use what is public, or list it in PRIVATE with the reason"
    assert PRIVATE.keys() - found == set(), "no longer used: strike it from PRIVATE"


@pytest.mark.parametrize("use", PRIVATE, ids=lambda use: use.name)
def test_every_private_attribute_is_there_in_the_installed_version(use: Use):
    owner = PRIVATE[use]

    assert private_parts.has(pkgutil.resolve_name(owner), use.name), f"{owner} of {version(owner.partition('.')[0])}"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import aiohttp\ndef f(session): return session._connector", {"_connector"}),
        ("from aiohttp import TCPConnector\nclass C(TCPConnector):\n    def f(self): return self._resolve_host", set()),
        ("from arq.worker import _x", {"_x"}),
        ("import redis._parsers", {"_parsers"}),
        ("from redis._parsers import y", {"_parsers"}),
        ("class C:\n    def __init__(self): self._x = 1\ndef f(): c = C(); return c._x", set()),
        ("class C:\n    @classmethod\n    def of(cls): found = cls(); found._x = 1; return found", set()),
        ("def f(frame): return frame._replace(id=1)", set()),
    ],
)
def test_the_walk_finds_what_is_not_ours(source: str, names: set[str], tmp_path, monkeypatch):
    """What classes inherit is left out: these files cannot be imported."""
    monkeypatch.setattr(private_parts, "ROOT", tmp_path)
    monkeypatch.setattr(private_parts, "_inherited", lambda *_: iter(()))
    (tmp_path / "made.py").write_text(source)

    assert {use.name for use in private_parts.uses(tmp_path / "made.py")} == names


def test_the_overridden_method_of_aiohttp_takes_what_aiohttp_gives():
    ours, theirs = inspect.signature(connecting._Protocol.resume_reading), inspect.signature(ResponseHandler.resume_reading)

    assert list(ours.parameters) == list(theirs.parameters)


def test_what_is_installed_is_within_the_bounds_that_we_state():
    for wanted in DIRECT:
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            assert wanted.specifier.contains(version(wanted.name)), wanted


def test_every_dependency_has_a_lower_bound_and_a_pin_within_it():
    for wanted in DIRECT:
        pins = [pin for pin in PINNED if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
        assert pins, f"{wanted.name}: make constraints"
        for pin in pins:
            (exact,) = pin.specifier
            assert exact.operator == "==", pin
            assert wanted.specifier.contains(exact.version), f"{pin} is not {wanted.specifier}: make constraints"
        assert {each.operator for each in wanted.specifier} & {">=", "=="}, f"{wanted} needs a lower bound"


def test_the_constraints_name_no_host_and_nothing_that_old_installers_refuse():
    for line, pin in zip((ROOT / "constraints.txt").read_text().splitlines(), PINNED, strict=True):
        assert "//" not in line
        assert not pin.extras
        assert not pin.url


# A repeat of a group that gives nothing back matches too far in Python 3.11.2, which is Debian 12's.
POSSESSIVE_GROUP = re.compile(r"\)(?:[*+?]|\{\d*,?\d*\})\+")


def _constants(tree: ast.AST) -> Iterator[ast.Constant]:
    """All of them but what the package ``regex`` compiles, which is its own on every Python."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "regex.compile":
            continue
        if isinstance(node, ast.Constant):
            yield node
        yield from _constants(node)


def test_no_expression_repeats_a_group_possessively():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in private_parts.sources()
        for node in _constants(ast.parse(path.read_text()))
        if isinstance(node.value, str | bytes)
        if POSSESSIVE_GROUP.search(node.value if isinstance(node.value, str) else node.value.decode("latin-1"))
    ]

    assert found == [], "Python 3.11.2 matches too far: write it without ++, *+ or ?+ behind a group"
    assert POSSESSIVE_GROUP.search(r"(?:\n(?:a)++)*+")

"""Which private attributes of libraries does the product use? A walk over its syntax trees finds them."""

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
NAMED_TUPLES = ("_asdict", "_fields", "_make", "_replace")  # Public although they begin with an underscore.
TIERS = ("api", "workers", "common", "cli")


class Use(NamedTuple):
    """``owner`` is the library's class or module if the code shows it, otherwise the expression."""

    module: str
    owner: str
    name: str


def sources() -> list[Path]:
    return [path for tier in TIERS for path in (ROOT / tier).rglob("*.py") if "migrations" not in path.parts]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in TIERS


def names_set(tree: ast.AST) -> set[str]:
    """Return all names that a piece of code defines: methods, fields, slots, and attributes set on ``self`` or ``cls``."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                names.add(node.attr)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
    return names


@cache
def names_of(owner: type) -> frozenset[str]:
    """Return the attributes that a class itself has or sets on its instances, in the installed version."""
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except (OSError, TypeError):  # Written in C.
        return frozenset(vars(owner))
    return frozenset(vars(owner)) | names_set(ast.parse(source))


def has(owner: object, name: str) -> bool:
    """Return whether a library's class or module has an attribute."""
    if isinstance(owner, type):
        return any(name in names_of(base) for base in owner.__mro__)
    return hasattr(owner, name)


def uses(path: Path) -> Iterator[Use]:
    """Yield each private attribute of a library that one of our files uses."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text())
    own = {"self", "cls", "super()", *_instances(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in NAMED_TUPLES:
            owner = ast.unparse(node.value)
            if owner not in own:
                yield Use(module, owner, node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported = getattr(node, "module", None) or node.names[0].name
            for name in (*imported.split("."), *(part for alias in node.names for part in alias.name.split("."))):
                if is_private(name) and not is_ours(imported):
                    yield Use(module, imported, name)
        elif isinstance(node, ast.ClassDef):
            yield from _inherited(module, node)


def _instances(tree: ast.AST) -> set[str]:
    """Return the variables that hold an object of a class of the same file."""
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    variables = set()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name() as name], value=ast.Call(func=ast.Name(id=made))) if made in {"cls", *classes}:
                variables.add(name.id)
            case ast.AnnAssign(target=ast.Name(id=variable), annotation=ast.Name(id=made)) if made in classes:
                variables.add(variable)
            case ast.arg(arg=variable, annotation=ast.Name(id=made)) if made in classes:
                variables.add(variable)
    return variables


def _inherited(module: str, node: ast.ClassDef) -> Iterator[Use]:
    """Yield the private attributes of a library's base class that one of our classes uses or overrides."""
    cls = getattr(importlib.import_module(module), node.name, None)
    if not isinstance(cls, type):  # Created in a function; so far the bases of such classes are our own.
        return
    bases = [base for base in cls.__mro__ if not is_ours(base.__module__)]
    used = {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute) and _is_own(child.value)}
    used |= {child.name for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)}
    for name in filter(is_private, used):
        owner = next((base for base in bases if name in names_of(base)), None)
        if owner and owner.__module__.partition(".")[0] not in sys.stdlib_module_names:
            yield Use(module, f"{owner.__module__}.{owner.__qualname__}", name)


def _is_own(node: ast.expr) -> bool:
    return ast.unparse(node) in ("self", "cls", "super()")


def all_uses() -> set[Use]:
    return {use for path in sources() for use in uses(path)}

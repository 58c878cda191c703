"""Which faults can be put into a Python file?

Those of mutmut's operators, and three of ours: a statement is dropped, a clause of a condition is dropped, a condition is
negated. As with mutmut, only what is inside a function is changed. Not changed: docstrings, annotations, what is logged, and
texts for people (a string with a space in it).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

from tests.mutants.mutant import Mutant, one_line

_MUTED_CALLS = ("len", "isinstance", "cast")  # What they are given is hardly ever a choice, or it is for the type checker.


def _strings(node: cst.BaseString) -> Iterator[cst.CSTNode]:
    """One mutant for each string, not one more for each case; none for what is read by people."""
    if isinstance(node, cst.SimpleString) and " " not in node.value:
        yield from list(mutators.operator_string(node))[:1]


def _assignments(node: cst.Assign | cst.AnnAssign) -> Iterator[cst.CSTNode]:
    """None instead of a value, but where that is as false."""
    if not _is_false(node):
        yield from mutators.operator_assignment(node)


def _is_false(node: cst.Assign | cst.AnnAssign | cst.Arg) -> bool:
    return isinstance(node.value, cst.Name) and node.value.value in ("None", "False")


def _arguments(node: cst.Call) -> Iterator[cst.CSTNode]:
    """An argument is dropped, or None where it is not as false; but for ``strict`` of ``zip``, which is an assertion."""
    strict = [arg for arg in node.args if arg.keyword and arg.keyword.value == "strict"]
    for mutated in mutators.operator_arg_removal(node):
        args = cst.ensure_type(mutated, cst.Call).args
        becomes_none = [_is_false(old) for old, new in zip(node.args, args, strict=False) if new is not old]
        if all(arg in args for arg in strict) and not (len(args) == len(node.args) and any(becomes_none)):
            yield mutated


def _drop_statement(node: cst.Expr) -> Iterator[cst.CSTNode]:
    if not isinstance(node.value, cst.Yield):  # A generator without yield is none.
        yield cst.Pass()


def _drop_clause(node: cst.BooleanOperation) -> Iterator[cst.CSTNode]:
    yield node.left
    yield node.right


def _negate(node: cst.If | cst.While) -> Iterator[cst.CSTNode]:
    if not isinstance(node.test, cst.Comparison | cst.UnaryOperation):  # These have a mutant of their own.
        test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


_LEFT_OUT = (
    mutators.operator_string,
    mutators.operator_assignment,
    mutators.operator_arg_removal,
    mutators.operator_match,
)
_OPERATORS: list[tuple[Any, Callable[[Any], Iterable[cst.CSTNode]]]] = [
    *((kind, make) for kind, make in mutators.mutation_operators if make not in _LEFT_OUT),
    (cst.BaseString, _strings),
    ((cst.Assign, cst.AnnAssign), _assignments),
    (cst.Call, _arguments),
    (cst.Expr, _drop_statement),
    (cst.BooleanOperation, _drop_clause),
    ((cst.If, cst.While), _negate),
]


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, path: str, module: cst.Module) -> None:
        super().__init__()
        self.mutants: list[Mutant] = []
        self._path = path
        self._module = module
        self._source_lines = module.code.splitlines()
        self._functions = 0
        self._statements: list[cst.CSTNode] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator) or _is_muted(node) or _is_declared_only(node):
            return False
        if isinstance(node, cst.FunctionDef):
            self._functions += 1
        if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self._statements.append(node)
        if self._functions and not isinstance(node, cst.FunctionDef):
            for kind, make in _OPERATORS:
                if isinstance(node, kind):
                    self.mutants += [self._mutant(node, mutated) for mutated in make(node)]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef):
            self._functions -= 1
        if self._statements and self._statements[-1] is original_node:
            self._statements.pop()

    def _mutant(self, node: cst.CSTNode, mutated: cst.CSTNode) -> Mutant:
        position = self.get_metadata(PositionProvider, node, None) or self.get_metadata(PositionProvider, self._statements[-1])
        first, last = position.start.line, position.end.line
        if isinstance(node, cst.If | cst.While):  # Its condition, not all that depends on it.
            last = self.get_metadata(PositionProvider, node.test).end.line
        statement = self.get_metadata(PositionProvider, self._statements[-1])
        begin = statement.start.line
        if isinstance(self._statements[-1], cst.FunctionDef):  # A default of a parameter, which each line of the body may use.
            last = statement.end.line
        return Mutant(
            self._path,
            range(begin, last + 1),
            first,
            self._source_lines[first - 1].strip(),
            f"{self._code(node)} → {self._code(mutated)}",
            partial(_replaced, self._module, node, mutated),
        )

    def _code(self, node: cst.CSTNode) -> str:
        if isinstance(node, cst.If | cst.While):
            return f"if {self._code(node.test)}"
        return one_line(self._module.code_for_node(node))


def _replaced(module: cst.Module, node: cst.CSTNode, mutated: cst.CSTNode) -> str:
    changed = module.deep_replace(node, mutated)
    assert isinstance(changed, cst.Module)
    return changed.code


def _is_muted(node: cst.CSTNode) -> bool:
    match node:
        case cst.Expr(value=cst.Call(func=cst.Attribute(value=cst.Name("log")))):
            return True
        case cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString() | cst.Ellipsis()):  # A docstring, or no body.
            return True
        case cst.Arg(keyword=cst.Name("strict")):  # Of ``zip``.
            return True
        case cst.Call(func=cst.Name(name)):
            return name in _MUTED_CALLS
    return False


def _is_declared_only(node: cst.CSTNode) -> bool:
    """Whether this is a method of a Protocol: its body is a docstring or an ellipsis, and nobody uses its defaults."""
    if not isinstance(node, cst.FunctionDef):
        return False
    if isinstance(node.body, cst.IndentedBlock):
        return all(isinstance(line, cst.SimpleStatementLine) and all(map(_is_muted, line.body)) for line in node.body.body)
    return all(map(_is_muted, node.body.body))


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Return all mutants of a Python file, in the order of its text."""
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    visitor = _Visitor(path, wrapper.module)
    wrapper.visit(visitor)
    return visitor.mutants

"""Source text of our modules: statements, the names that each one binds, and the definitions of the names it uses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeGuard

PACKAGE = "chatbot"
LEFT_OUT = frozenset({"chatbot.native.library"})
"""Modules that the exported file omits: they only make others faster, and they need a compiler."""

Definition = ast.FunctionDef | ast.ClassDef


class Target(NamedTuple):
    """A name at the top of one of our modules; `name` is empty for the module itself."""

    module: str
    name: str


@dataclass
class Statement:
    """A statement at the top of a module, with the comments above it and the string below it that describes it."""

    node: ast.stmt
    first_line: int
    last_line: int
    names: frozenset[str]


@dataclass
class Module:
    """A parsed module.

    Attributes:
        lines: Its lines in UTF-8, with line ends.
        statements: Statements that bind names.
        imported: Names imported from our modules.
        external: Names imported from other packages, with their import statement.
        dropped: Nodes that are not copied.
    """

    name: str
    lines: list[bytes]
    docstring: str
    statements: list[Statement] = field(default_factory=list)
    imported: dict[str, Target] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)
    dropped: set[ast.stmt] = field(default_factory=set)

    def nodes(self, statement: Statement) -> Iterator[ast.AST]:
        """Yield the nodes of a statement, without the nodes in `dropped`."""
        waiting: list[ast.AST] = [statement.node]
        while waiting:
            node = waiting.pop()
            if node not in self.dropped:
                yield node
                waiting.extend(ast.iter_child_nodes(node))

    def offset(self, line: int, column: int = 0) -> int:
        """Return the position of a byte in the module."""
        return sum(map(len, self.lines[: line - 1])) + column


@cache
def read_module(name: str) -> Module:
    """Parse one of our modules."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_bytes()
    tree = ast.parse(source)
    module = Module(name, source.splitlines(keepends=True), ast.get_docstring(tree) or "")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            module.dropped.add(node)
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = Target(inner, "") if _is_module(inner) else Target(node.module or "", alias.name)
                module.imported[alias.asname or alias.name] = target
    for statement in [*tree.body, *_type_imports(tree)]:
        if isinstance(statement, (ast.Import, ast.ImportFrom)) and statement not in module.dropped:
            for alias in statement.names:
                line = ast.unparse(
                    ast.Import([alias])
                    if isinstance(statement, ast.Import)
                    else ast.ImportFrom(statement.module, [alias], 0)
                )
                module.external[alias.asname or alias.name.split(".")[0]] = line
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and any(
            isinstance(part, ast.Name) and module.imported.get(part.id, Target("", "")).module in LEFT_OUT
            for part in ast.walk(node.test)
        ):
            assert not node.orelse, f"{name}: an `if` that tests a module of LEFT_OUT has an else. Remove the else."
            module.dropped.add(node)
    previous_end = 0
    for index, statement in enumerate(tree.body):
        first = min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", []))])
        while first - 1 > previous_end and module.lines[first - 2].startswith(b"#"):
            first -= 1
        last = statement.end_lineno or statement.lineno
        following = tree.body[index + 1] if index + 1 < len(tree.body) else None
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and _is_string(following):
            last = following.end_lineno or last
        previous_end = last
        if names := _bound_names(statement):
            module.statements.append(Statement(statement, first, last, names))
    return module


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module
        return False


def _is_string(node: ast.stmt | None) -> TypeGuard[ast.Expr]:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _type_imports(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements below `if TYPE_CHECKING`."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from node.body


def _bound_names(statement: ast.stmt) -> frozenset[str]:
    """Return the names that a statement defines or changes; assigning to an attribute or item changes the object."""
    if isinstance(statement, Definition):
        return frozenset({statement.name})
    if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For)):
        return frozenset()
    names = set()
    for node in ast.walk(statement):
        for target in getattr(node, "targets", [getattr(node, "target", None)]) if isinstance(node, ast.stmt) else []:
            parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            for part in parts:
                while isinstance(part, (ast.Attribute, ast.Subscript)):
                    part = part.value
                if isinstance(part, ast.Name):
                    names.add(part.id)
    return frozenset(names)


def resolve(target: Target) -> Target | str | None:
    """Return the module and name that define a name: ours, an import statement of another package, or None (a builtin)."""
    module = read_module(target.module)
    if not target.name or any(target.name in statement.names for statement in module.statements):
        return target
    if target.name in module.imported:
        inner = module.imported[target.name]
        return inner if not inner.name else resolve(inner)
    return module.external.get(target.name)


def references(module: Module, statement: Statement) -> Iterator[tuple[ast.expr, Target | str]]:
    """Yield the expressions of a statement that name something outside of it, with their definitions.

    An expression is a name or, for a name in one of our modules, `module.name`.
    """
    inside = set()
    for node in module.nodes(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in module.imported:
            owner = module.imported[node.value.id]
            if not owner.name and (definition := resolve(Target(owner.module, node.attr))) is not None:
                inside.add(node.value)
                yield node, definition
        elif isinstance(node, ast.Name) and node not in inside:
            definition = resolve(Target(module.name, node.id))
            if definition is not None:
                yield node, definition

"""One Python file from several of our modules, for users who do not have this package.

The file holds the definitions that the wanted classes need, in the order in which Python would import their modules. The
source is copied with its comments; only three things change:

* Imports between our modules disappear. A name that two modules define gets the name of its module as a prefix, and
  `module.name` becomes that name.
* An `if` whose test asks for a module of `LEFT_OUT` is dropped with its block.
* Statements that bind no name, such as registrations, are left out.

The result is a function of the sources alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = "chatbot"
LEFT_OUT = frozenset({"chatbot.native.library"})
"""Modules that only speed up others and need a compiler."""

Definition = ast.FunctionDef | ast.ClassDef


class Target(NamedTuple):
    """A name at the top of one of our modules; `name` is empty for the module itself."""

    module: str
    name: str


class Edit(NamedTuple):
    """Replacement of the bytes from `start` to `end` of a module."""

    start: int
    end: int
    text: str


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
        own: Names imported from our modules.
        external: Names imported from other packages, with their import statement.
        dropped: Nodes that are not copied.
    """

    name: str
    lines: list[bytes]
    docstring: str
    statements: list[Statement] = field(default_factory=list)
    own: dict[str, Target] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)
    dropped: set[ast.AST] = field(default_factory=set)

    def nodes(self, statement: Statement) -> Iterator[ast.AST]:
        """Yield the nodes of a statement without those that are dropped."""
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
                module.own[alias.asname or alias.name] = target
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
            isinstance(part, ast.Name) and module.own.get(part.id, Target("", "")).module in LEFT_OUT
            for part in ast.walk(node.test)
        ):
            assert not node.orelse, f"{name}: an `if` with a module that is left out has an else"
            module.dropped.add(node)
    previous_end = 0
    for index, statement in enumerate(tree.body):
        first = min(
            [statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", []))]
        )
        while first - 1 > previous_end and module.lines[first - 2].startswith(b"#"):
            first -= 1
        last = statement.end_lineno or statement.lineno
        following = tree.body[index + 1] if index + 1 < len(tree.body) else None
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and _is_string(following):
            last = following.end_lineno  # type: ignore[union-attr]
        previous_end = last
        if names := _bound_names(statement):
            module.statements.append(Statement(statement, first, last, names))
    return module


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module
        return False


def _is_string(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _type_imports(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements below `if TYPE_CHECKING`."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from node.body


def _bound_names(statement: ast.stmt) -> frozenset[str]:
    """Return the names that a statement defines or changes: of an assignment, also the object whose part it sets."""
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
    if target.name in module.own:
        inner = module.own[target.name]
        return inner if not inner.name else resolve(inner)
    return module.external.get(target.name)


def _references(module: Module, statement: Statement) -> Iterator[tuple[ast.expr, Target | str]]:
    """Yield the expressions of a statement that name something outside of it, with their definitions.

    An expression is a name or, for a name in one of our modules, `module.name`.
    """
    inside = set()
    for node in module.nodes(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in module.own:
            owner = module.own[node.value.id]
            if not owner.name and (found := resolve(Target(owner.module, node.attr))) is not None:
                inside.add(node.value)
                yield node, found
        elif isinstance(node, ast.Name) and node not in inside:
            found = resolve(Target(module.name, node.id))
            if found is not None:
                yield node, found


@dataclass(frozen=True)
class SingleFile:
    """A file and the names that it defines.

    Attributes:
        text: Its content.
        names: Its name for each definition of our modules.
    """

    text: str
    names: Mapping[Target, str]


def join_modules(
    roots: Sequence[Target], header: str, sibling: tuple[str, SingleFile] | None = None
) -> SingleFile:
    """Return one file with the definitions that `roots` need.

    Args:
        roots: Definitions of our modules that the file must have, under their own names.
        header: Docstring of the file.
        sibling: Name (without .py) and content of a file in the same folder whose names are imported from there.
    """
    elsewhere = sibling[1].names if sibling else {}
    chosen: dict[str, list[Statement]] = {}
    used: set[Target] = set()
    borrowed: set[str] = set()
    imports: set[str] = set()
    order: list[str] = []

    def visit(target: Target) -> None:
        if target in used:
            return
        if target in elsewhere:
            borrowed.add(elsewhere[target])
            return
        used.add(target)
        module = read_module(target.module)
        mine = chosen.setdefault(module.name, [])
        for statement in module.statements:
            if target.name in statement.names and statement not in mine:
                mine.append(statement)
                for name in sorted(statement.names):
                    visit(Target(module.name, name))
                for node, found in sorted(_references(module, statement), key=lambda item: _position(item[0])):
                    if isinstance(found, str):
                        imports.add(found)
                    elif found.name:
                        visit(found)
                    else:
                        raise ValueError(f"{module.name} uses {ast.unparse(node)} itself, not a name in it")
        if module.name not in order:
            order.append(module.name)

    for root in roots:
        visit(root)
    names = _final_names(used)
    parts = [f'"""{header.strip()}\n"""', "from __future__ import annotations", _import_block(imports)]
    if sibling and borrowed:
        parts.append(f"from .{sibling[0]} import {', '.join(sorted(borrowed))}")
    every = {**elsewhere, **names}
    for name in _in_import_order(order):
        module = read_module(name)
        parts.append(_comment(f"{name}: {module.docstring}"))
        statements = sorted(chosen[name], key=lambda statement: statement.first_line)
        parts += [_copied(module, statement, every) for statement in statements]
    return SingleFile("\n\n".join(part for part in parts if part) + "\n", names)


def _position(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _in_import_order(modules: Sequence[str]) -> list[str]:
    """Return the modules so that each comes after those that it imports."""
    done: list[str] = []

    def visit(name: str) -> None:
        if name in done or name in path or name in LEFT_OUT:
            return
        path.append(name)
        for target in read_module(name).own.values():
            visit(target.module)
        path.pop()
        done.append(name)

    path: list[str] = []
    for name in modules:
        visit(name)
    return [name for name in done if name in modules]


def _final_names(used: set[Target]) -> dict[Target, str]:
    """Return the name of each definition in the file; equal names get their module as a prefix."""
    count: dict[str, int] = {}
    for target in used:
        count[target.name] = count.get(target.name, 0) + 1
    names = {
        target: target.name if count[target.name] == 1 else f"{target.module.split('.')[-1]}_{target.name.lstrip('_')}"
        for target in used
    }
    assert len(set(names.values())) == len(names), "two definitions would get the same name"
    return names


def _import_block(imports: set[str]) -> str:
    """Return import statements, one per package, plain imports first."""
    joined: dict[str, list[str]] = {}
    for line in sorted(imports):
        if line.startswith("from "):
            source, _, name = line.partition(" import ")
            joined.setdefault(source, []).append(name)
    rows = sorted(line for line in imports if line.startswith("import "))
    return "\n".join([*rows, *(f"{source} import {', '.join(names)}" for source, names in sorted(joined.items()))])


def _comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def _copied(module: Module, statement: Statement, names: Mapping[Target, str]) -> str:
    """Return the source of a statement with its names as they are in the file."""
    edits = [_removal(module, node) for node in module.dropped if _is_inside(node, statement)]
    renamed = set()
    for node, found in _references(module, statement):
        new = names[found] if isinstance(found, Target) else ast.unparse(node)
        if new != ast.unparse(node):
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            start = module.offset(node.lineno, node.col_offset)
            edits.append(Edit(start, module.offset(node.end_lineno, node.end_col_offset), new))
            renamed.add(ast.unparse(node))
    _check_not_shadowed(module, statement, renamed)
    start, end = module.offset(statement.first_line), module.offset(statement.last_line + 1)
    source = b"".join(module.lines)
    text = source[start:end]
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start - start] + edit.text.encode() + text[edit.end - start :]
    node = statement.node
    result = text.decode().rstrip("\n")
    if isinstance(node, Definition) and (new := names[Target(module.name, node.name)]) != node.name:
        result = re.sub(rf"^(def|class) {node.name}\b", rf"\1 {new}", result, count=1, flags=re.MULTILINE)
    return ("\n" + result) if isinstance(node, Definition) else result


def _is_inside(node: ast.AST, statement: Statement) -> bool:
    return statement.first_line <= node.lineno <= statement.last_line  # type: ignore[attr-defined]


def _removal(module: Module, node: ast.AST) -> Edit:
    """Return the removal of whole lines."""
    first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
    return Edit(module.offset(first), module.offset(last + 1), "")


def _check_not_shadowed(module: Module, statement: Statement, renamed: set[str]) -> None:
    """Check that no local name equals a name that is replaced; replacing it would be wrong."""
    local = set()
    for node in module.nodes(statement):
        if isinstance(node, ast.arg):
            local.add(node.arg)
        elif node is not statement.node and isinstance(node, Definition):
            local.add(node.name)
        elif isinstance(node, ast.JoinedStr):  # Python before 3.12 does not know the positions inside
            local |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in statement.names:
            local.add(node.id)
    if clash := sorted(local & renamed):
        raise ValueError(f"{module.name}: the local name {clash[0]} equals a definition that is renamed; rename it")

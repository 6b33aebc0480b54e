"""One Python file from several of our modules, for users who do not have this package.

The file holds the definitions that the wanted classes need, in the order in which Python would import their modules.
The source is copied with its comments; only three things change:

* Imports between our modules disappear. A name that two modules define gets the name of its module as a prefix, and
  `module.name` becomes that name.
* An `if` whose test uses a module of `sources.LEFT_OUT` is removed together with its block.
* Statements that bind no name, such as registrations, are left out.

The result depends on the sources alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chatbot.checkpoint.export import sources
from chatbot.checkpoint.export.sources import Definition, Module, Statement, Target, read_module, references


class Edit(NamedTuple):
    """Replacement of the bytes from `start` to `end` of a module."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class SingleFile:
    """A file and the names that it defines.

    Attributes:
        text: Its content.
        names: For each definition in our modules, its name in the exported file.
    """

    text: str
    names: Mapping[Target, str]


def join_modules(roots: Sequence[Target], header: str, sibling: tuple[str, SingleFile] | None = None) -> SingleFile:
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
                for node, definition in sorted(references(module, statement), key=lambda item: _position(item[0])):
                    if isinstance(definition, str):
                        imports.add(definition)
                    elif definition.name:
                        visit(definition)
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
    """Return the modules in an order in which each comes after the modules that it imports."""
    done: list[str] = []

    def visit(name: str) -> None:
        if name in done or name in path or name in sources.LEFT_OUT:
            return
        path.append(name)
        for target in read_module(name).imported.values():
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
    for node, definition in references(module, statement):
        new = names[definition] if isinstance(definition, Target) else ast.unparse(node)
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
    defined = statement.node
    result = text.decode().rstrip("\n")
    if isinstance(defined, Definition) and (new := names[Target(module.name, defined.name)]) != defined.name:
        result = re.sub(rf"^(def|class) {defined.name}\b", rf"\1 {new}", result, count=1, flags=re.MULTILINE)
    return ("\n" + result) if isinstance(defined, Definition) else result


def _is_inside(node: ast.stmt, statement: Statement) -> bool:
    return statement.first_line <= node.lineno <= statement.last_line


def _removal(module: Module, node: ast.stmt) -> Edit:
    """Return the removal of whole lines."""
    first, last = node.lineno, node.end_lineno or node.lineno
    return Edit(module.offset(first), module.offset(last + 1), "")


def _check_not_shadowed(module: Module, statement: Statement, renamed: set[str]) -> None:
    """Check that no local variable has the name of a definition that is renamed: it would be renamed too."""
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

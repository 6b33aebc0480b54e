"""Find the texts that the commands show: help texts, errors and printed lines, with values numbered as in the catalogue."""

from __future__ import annotations

import argparse
import ast
import functools
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from chatbot.checkpoint.export.cli import build_parser as build_export_parser
from chatbot.cli import build_chat_parser, build_evaluate_parser
from data_prep.cli import build_parser as build_prepare_parser
from training.arguments import build_parser as build_train_parser
from training.likeness.cli import build_parser as build_likeness_parser
from training.naming.cli import build_parser as build_name_parser
from ui.cli import build_parser as build_serve_parser

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("chatbot", "data_prep", "training", "ui")
PARSERS = {
    "xianliao-chat": build_chat_parser,
    "xianliao-evaluate": build_evaluate_parser,
    "xianliao-prepare": build_prepare_parser,
    "xianliao-train": build_train_parser,
    "xianliao-serve": build_serve_parser,
    "xianliao-export": build_export_parser,
    "xianliao-name": build_name_parser,
    "xianliao-likeness": build_likeness_parser,
}
ELSEWHERE = (
    "chatbot/evaluation/behaviour.py",  # prints Markdown for the model card
    "chatbot/evaluation/report/",  # writes documents, whose texts have a section of the catalogue
    "data_prep/report.py",
    "ui/api/",  # errors of the API stay as they are, like those of other servers of its kind
    "ui/server/gate.py",
    "ui/server/limits.py",
    "ui/server/page_routes.py",
    "ui/page/",  # has its own texts in both languages
)
"""Code whose messages do not reach the terminal."""
INTERNAL = {
    "AttributeError",
    "IndexError",
    "MemoryError",
    "NotImplementedError",
    "RuntimeError",
    "ApiError",
    "BusyError",
}
"""Errors of programmers and of the API."""
VALUE_ERRORS = (
    "chatbot/checkpoint/weights.py",
    "chatbot/model/config.py",
    "chatbot/similarity/token_vectors.py",
    "data_prep/reading/hub.py",
)
"""Modules whose ValueErrors are quoted in an error for users."""
LISTS = {"faults", "missing", "wrong", "problems"}
"""Lists of faults that become one error."""
RETURNS_MESSAGES = re.compile("fault|_below|_warning|^warnings$|^_reason|^_summary|^minutes|^range$")
"""Functions that return faults or printed texts."""
REPORTS = ("_summary", "warnings", "summary_of", "_sample", "estimate", "_lines")
"""Functions whose lists of lines are printed."""
SHOWN_ARGUMENTS = {"print", "message", "labelled", "translate", "announce", "_say", "read_json", "error"}
SHOWN_ARGUMENTS |= {"_fault", "_unsupported"}
"""Functions that show their texts or put them into an error."""
WORDS = re.compile("[A-Za-z]{2,} [a-z]+")
TEXT = re.compile("[A-Za-z]{3,}.* | .*[A-Za-z]{3,}", re.DOTALL)


def help_texts() -> dict[str, set[str]]:
    """Return the help texts, titles and descriptions of every command's parser."""
    return {command: set(_texts_of(build())) for command, build in PARSERS.items()}


def _texts_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield parser.description or ""
    for group in parser._action_groups:
        yield from (text for text in (group.title, group.description) if text)
    yield from (action.help for action in parser._actions if action.help and action.help is not argparse.SUPPRESS)


@functools.cache
def messages() -> dict[str, str]:
    """Return the texts of errors and printed lines in the code, each with the place of one use."""
    texts: dict[str, str] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not name.startswith(ELSEWHERE):
                for line, text in Module(path, name).messages():
                    texts.setdefault(text, f"{name}:{line}")
    return texts


class Module:
    """A module whose messages are collected."""

    def __init__(self, path: Path, name: str):
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.quotes_value_errors = name in VALUE_ERRORS
        self.scopes: list[ast.AST] = [self.tree]

    def messages(self) -> Iterator[tuple[int, str]]:
        for line, text in self._visit(self.tree):
            if TEXT.search(text):
                yield line, _numbered(text)

    def _visit(self, node: ast.AST) -> Iterator[tuple[int, str]]:
        is_scope = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if is_scope:
            self.scopes.append(node)
        for expression in self._shown(node):
            yield from ((node.lineno, text) for text in self._alternatives(expression))
        for child in ast.iter_child_nodes(node):
            yield from self._visit(child)
        if is_scope:
            self.scopes.pop()

    def _shown(self, node: ast.AST) -> list[ast.expr]:
        """Return the expressions of a node whose texts a user sees."""
        function = self.scopes[-1]
        name_of_function = function.name if isinstance(function, ast.FunctionDef) else ""
        lists = LISTS | {"lines", "sentences", "durations"} if name_of_function in REPORTS else LISTS
        if isinstance(node, ast.Call):
            before, _, name = ast.unparse(node.func).rpartition(".")
            if name.endswith("Error"):
                hidden = INTERNAL if self.quotes_value_errors else INTERNAL | {"ValueError"}
                return [] if name in hidden else node.args
            if name in SHOWN_ARGUMENTS or (name == "append" and before in lists):
                return node.args
        if isinstance(node, ast.AugAssign) and ast.unparse(node.target) in lists:
            return [node.value]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in lists:
            return [node.value]
        if isinstance(node, ast.Return) and node.value is not None:
            return [node.value] if RETURNS_MESSAGES.search(name_of_function) else []
        return []

    def _alternatives(self, node: ast.expr, depth: int = 0) -> list[str]:
        """Return every text that an expression can have, with \\0 for each value."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else ["\0"]
        if isinstance(node, ast.JoinedStr):
            return self._joined(node.values, depth)
        if isinstance(node, ast.FormattedValue):
            inner = self._alternatives(node.value, depth)
            return inner if any(WORDS.search(text) for text in inner) else ["\0"]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined([node.left, node.right], depth)
        if isinstance(node, ast.IfExp):
            return self._alternatives(node.body, depth) + self._alternatives(node.orelse, depth)
        if isinstance(node, (ast.List, ast.Tuple)):
            return [text for item in node.elts for text in self._alternatives(item, depth)]
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return self._alternatives(node.elt, depth)
        if isinstance(node, ast.Name) and depth < 3:
            values = [value for scope in reversed(self.scopes) for value in _assigned(scope, node.id)]
            texts = [text for value in values for text in self._alternatives(value, depth + 1)]
            return texts if any(TEXT.search(text) for text in texts) else ["\0"]
        return ["\0"]

    def _joined(self, parts: list[ast.expr], depth: int) -> list[str]:
        return ["".join(texts) for texts in product(*(self._alternatives(part, depth) for part in parts))]


def _assigned(scope: ast.AST, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(scope) if isinstance(scope, ast.FunctionDef) else ast.iter_child_nodes(scope):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and name not in LISTS:
            yield node.value


def _numbered(text: str) -> str:
    numbers = iter(range(text.count("\0")))
    return re.sub("\0", lambda _: f"{{{next(numbers)}}}", text)

"""Check the words of docstrings, comments, messages and pages, and the names: `python -m tests.prose [FOLDER ...]`.

Without a folder, the whole project is checked, but only the names of the tests.

`python -m tests.prose --draw 40 --seed 1` prints sentences drawn at random instead, for somebody who reads them for the
first time: every sentence that needs a second reading is written again.

The patterns are habits that made readers give up. A line that needs one of them all the same can say so: `# prose: ok`.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
WORDED = ("chatbot", "data_prep", "training", "ui", "lite", "examples", *PAGES, "deploy", "docs", "checkpoints")
"""Folders and pages whose words are checked."""
NAMED = (*WORDED, "tests")
"""Folders whose names are checked."""
UNITS = (
    "second|minute|hour|day|step|token|turn|line|row|file|dialogue|message|reply|core|sender|replica|conversation|page"
)
THINGS = (
    "tokens?|requests?|steps?|lines?|messages?|repl(?:y|ies)|bytes|MB|GB|ms|milliseconds|KB|seconds|passes|dialogues"
)

PATTERNS = {
    'a sentence that begins with "Of"': r"(?:^|[.:;!?]\s+)Of (?!course)[a-z`]",
    '"is no X" for "is not an X"': r"\b(?:is|are|was|were) no (?!longer|more\b|less\b|different|worse|better)[a-z]",
    '"what is" as a noun': r"(?<![A-Za-z]\?)(?<!^)\b(?:what|who) (?:is|are|was|were)\b(?![^.]*\?)",
    '"whoever" or "whatever" as a noun': r"\b[Ww]h(?:oever|atever)\b",
    '"N a M" for "N per M"': rf"\b(?:{THINGS}) an? (?:{UNITS})\b(?! (?:is|of|that|has|was|may|can)\b)",
    '"nobody"': r"\b[Nn]obody\b",
    '"one\'s own", "of its own"': r"\bone's own\b|\bof (?:its|their|his|her|our|your|my) own\b|\bof ours\b",
    '"all that", "such a"': r"\b[Aa]ll that (?!follows)\b|\b[Ss]uch an?\b",
    '"goes", "stands", "lies" for is removed, located': r"\b(?:goes|stands|lies)\b(?! (?:on|wrong|for|alone)\b)",
    '"not at all", "nothing of"': r"\bnot at all\b|\bnothing of a\b",
}
VAGUE_NAMES = {"found", "place", "said", "own", "kept", "go", "take"}
WORDS = re.compile("[a-z]+ [a-z]+")
COMPILED = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}


def texts_of_module(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every comment, docstring and English message of a module."""
    source = path.read_text(encoding="utf-8")
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("#! ")
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and len(re.findall("[a-z]+ [a-z]+", node.value)) >= 2
        ):
            yield node.lineno, node.value


def vague_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every value, function or class of a module whose name does not say what it is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                names = [name]
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names = [alias.asname for alias in aliases if alias.asname]
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.ExceptHandler(name=str(name)):
                names = [name]
            case _:
                continue
        yield from ((node.lineno, name) for name in names if name.lstrip("_") in VAGUE_NAMES)


def vague_script_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every such name in a script of the page, outside comments and quoted strings."""
    pattern = re.compile(rf"(?<![\w.-])_?({'|'.join(sorted(VAGUE_NAMES))})\b")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        code = re.sub(r'^\s*//.*|  // .*|"(?:[^"\\]|\\.)*"', "", line)
        yield from ((number, match[1]) for match in pattern.finditer(code))


def texts_of_page(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, paragraph) of a Markdown page, without code."""
    text = re.sub(
        r"```.*?```", lambda match: "\n" * match[0].count("\n"), path.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    line = 1
    for block in text.split("\n\n"):
        if not block.startswith("    "):
            yield line, re.sub("`[^`]*`", "`x`", block)
        line += block.count("\n") + 2


def name_faults(path: Path) -> Iterator[str]:
    """Yield one line per vague name of a module or a script; a page has none."""
    if path.suffix != ".md":
        for number, name in vague_names(path) if path.suffix == ".py" else vague_script_names(path):
            yield f"{path.relative_to(ROOT)}:{number}: the name `{name}`: name what it holds or does"


def word_faults(path: Path) -> Iterator[str]:
    """Yield one line per habit in the sentences of a module or a page; the comments of scripts are not read."""
    if path.suffix == ".js":
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, text in texts_of_page(path) if path.suffix == ".md" else texts_of_module(path):
        if "prose: ok" in lines[min(number, len(lines)) - 1]:
            continue
        flat = " ".join(text.split())
        for name, pattern in COMPILED.items():
            if (match := pattern.search(flat)) is not None:
                around = flat[max(0, match.start() - 40) : match.end() + 40]
                yield f"{path.relative_to(ROOT)}:{number}: {name}: …{around}…"


def files(names: Iterable[str]) -> Iterator[Path]:
    """Yield the modules, scripts and pages among files and folders, without logs and experiments."""
    for name in names:
        path = ROOT / name
        pages = [path] if path.is_file() else sorted(chain.from_iterable(map(path.rglob, ("*.py", "*.js", "*.md"))))
        yield from (each for each in pages if "log" not in each.parts and "experiments" not in each.parts)


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, sentence) of a module or a page; tables, code and headings are left out."""
    for number, text in texts_of_page(path) if path.suffix == ".md" else texts_of_module(path):
        if "|--" not in text and not text.startswith("#"):
            parts = re.split(r"(?<=[.!?:])\s+(?=[A-Z`])|(?<=[。！？])|\n\s*\n|\n\s*[*-] ", text)
            yield from ((number, " ".join(part.split())) for part in parts if len(WORDS.findall(part)) > 2)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the words, or draw sentences to read.")
    parser.add_argument("paths", nargs="*", metavar="FOLDER", help="folders or files (default: the project)")
    parser.add_argument("--draw", type=int, metavar="N", help="print N sentences drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    args = parser.parse_args()
    if args.draw:
        paths = [path for path in files(args.paths or WORDED) if path.suffix != ".js"]
        drawn = [(path, *part) for path in paths if not path.name.endswith(".zh.md") for part in sentences(path)]
        for path, number, text in random.Random(args.seed).sample(drawn, min(args.draw, len(drawn))):
            print(f"{path.relative_to(ROOT)}:{number}: {text}")
        return 0
    listed = [fault for path in files(args.paths or NAMED) for fault in name_faults(path)]
    listed += [fault for path in files(args.paths or WORDED) for fault in word_faults(path)]
    print(*listed, sep="\n")
    print(f"{len(listed)} faults", file=sys.stderr)
    return bool(listed)


if __name__ == "__main__":
    sys.exit(main())

"""Every package that a module imports, also inside a function, is declared in pyproject.toml for its room."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from tests.conftest import ROOT

OWN = {"chatbot", "data_prep", "training", "ui", "lite", "deploy", "tests", "xianliao_lite"}
EXTRAS = {
    "chatbot": ("eval", "export", "gpu", "html", "lora", "words"),
    "data_prep": ("prepare", "words"),
    "training": ("train", "tensorboard", "lora"),
    "ui": ("serve", "ray"),
    "checkpoints": ("train",),
    "examples": ("export",),
    "lite": ("html",),
    "tests": ("test", "ray", "gpu", "html"),
}
"""Extras that a room may import from, besides the dependencies of every installation."""

DISTRIBUTIONS = {"fla": "flash-linear-attention", "pydantic_core": "pydantic", "yaml": "pyyaml"}
"""Distributions of modules that may be missing here, or that come with exactly one other package."""

ONLY_IF_INSTALLED = {
    "ctranslate2": "a peer of a benchmark",
    "exported_xianliao": "a folder that a test writes",
    "gguf": "writes a file that must be refused",
    "langchain_core": "a client of the API",
    "langchain_openai": "a client of the API",
}
"""Modules that tests import only where somebody installed them."""

IMPORTERS = ("__import__", "find_spec", "import_module", "importorskip", "require")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


distributions_by_module = cache(packages_distributions)
"""Distributions of each installed module; they are looked up once, because that takes a second."""


def names_of(requirements: list[str]) -> set[str]:
    """Return the normalised names of requirements, with those of the extras of this project that they name."""
    names: set[str] = set()
    for requirement in requirements:
        name = normalised(re.match(r"[\w.-]+", requirement).group())
        if name == "xianliao":
            for extra in re.search(r"\[(.+)\]", requirement).group(1).split(","):
                names |= names_of(PROJECT["optional-dependencies"][extra])
        else:
            names.add(name)
    return names


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(source: str) -> set[str]:
    """Return the top-level modules that a source imports by a statement, or by a call with a literal name."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in IMPORTERS and isinstance(node.args[0].value, str):
                names.append(node.args[0].value)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def undeclared(room: str, source: str) -> set[str]:
    """Return the modules of other projects that a source imports and that its room does not declare."""
    declared = names_of(PROJECT["dependencies"])
    for extra in EXTRAS[room]:
        declared |= names_of(PROJECT["optional-dependencies"][extra])
    distributions = distributions_by_module()
    missing = set()
    for module in imported(source) - OWN - (set(ONLY_IF_INSTALLED) if room == "tests" else set()):
        possible = [DISTRIBUTIONS[module]] if module in DISTRIBUTIONS else distributions.get(module, [module])
        if not {normalised(name) for name in possible} & declared:
            missing.add(module)
    return missing


@pytest.mark.parametrize("room", EXTRAS)
def test_every_imported_package_is_declared(room):
    files = [path for path in sorted((ROOT / room).rglob("*.py")) if ".venv" not in path.parts]
    assert files
    faults = {str(path.relative_to(ROOT)): undeclared(room, path.read_text(encoding="utf-8")) for path in files}
    assert {path: modules for path, modules in faults.items() if modules} == {}


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f():\n    import pandas as pd", {"pandas"}),
        ("from gradio.themes import Base", {"gradio"}),
        ("import importlib\nimportlib.import_module('scipy.sparse')", set()),
        ("from importlib import import_module\nimport_module('polars')", {"polars"}),
        ("import os, torch, yaml, ot, jieba", set()),
    ],
)
def test_the_rule_catches_an_offender(source, missing):
    assert undeclared("chatbot", source) == missing


def test_every_exception_is_needed():
    """A name in the tables above that no file imports would hide a fault later."""
    everywhere: set[str] = set()
    for room in EXTRAS:
        for path in (ROOT / room).rglob("*.py"):
            everywhere |= imported(path.read_text(encoding="utf-8"))
    assert set(ONLY_IF_INSTALLED) | set(DISTRIBUTIONS) <= everywhere

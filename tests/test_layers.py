"""The import rule: ui -> chatbot; training -> data_prep -> chatbot; nobody imports ui, training or a cli."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers

import chatbot
from tests.conftest import LONGEST, ROOT

ROOMS = ("chatbot", "data_prep", "training", "ui")
ALLOWED = {
    "chatbot": {"chatbot"},
    "data_prep": {"data_prep", "chatbot"},
    "training": {"training", "data_prep", "chatbot"},
    "ui": {"ui", "chatbot"},
}


def levels_of(docstring: str) -> list[set[str]]:
    """Return the import levels that a package's docstring lists, lowest first: the names at the start of its lines."""
    rows = re.findall(r"^ {4}(\w+(?:, \w+)*) {2,}\S", docstring, flags=re.MULTILINE)
    return [set(row.split(", ")) for row in rows]


LEVELS = levels_of(chatbot.__doc__)
TEXT_MODULES = (
    "chatbot",
    "chatbot.text.dialogue",
    "chatbot.text.chat_template",
    "chatbot.text.tokenizer",
    "chatbot.text.dialogue_files",
    "chatbot.safety",
    "chatbot.decoding.settings",
    "data_prep.reading.formats",
    "data_prep.cleaning.rules",
    "data_prep.cleaning.cleaner",
    "data_prep.corpus.content_hash",
    "data_prep.corpus.frequent_turns",
    "data_prep.corpus.near_duplicates",
    "data_prep.corpus.content_hash",
    "data_prep.stages.clean_block",
    "data_prep.reading.hub",
    "data_prep.pipeline",
    "data_prep.preview",
    "ui.page.text",
)
COMMANDS = ("data_prep.cli", "training.cli", "chatbot.cli", "chatbot.checkpoint.export.cli", "ui.cli")


def imports_of(path: Path) -> set[str]:
    """Modules a file imports, at any depth of nesting; `from x import y` counts as x and x.y."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


FILES = [(room, path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda value: str(getattr(value, "name", value)))
def test_rooms_import_only_what_they_may(room, path):
    check_file(room, path)


def check_file(room: str, path: Path) -> None:
    ours = {name for name in imports_of(path) if name.split(".")[0] in ROOMS}
    wrong = {name for name in ours if name.split(".")[0] not in ALLOWED[room]}
    assert not wrong
    commands = {name for name in ours if name.split(".")[1:2] == ["cli"]}
    if room == "ui":
        shared = {"add_model_options", "check_model_options", "add_safety_option", "add_script_option"}
        commands -= {"chatbot.cli", *(f"chatbot.cli.{name}" for name in shared)}
    assert path.name == "__main__.py" or not commands


def test_data_prep_takes_only_the_text_modules_of_chatbot():
    for _, path in [entry for entry in FILES if entry[0] == "data_prep"]:
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("chatbot.")}
        assert used <= {"errors", "language", "storage", "text", "__version__"} | {"checkpoint"}, path
        deeper = {name for name in imports_of(path) if name.startswith("chatbot.checkpoint.")}
        assert {name.split(".")[2] for name in deeper} <= {"location"}, path  # where the bundled tokenizer is


def test_chatbot_imports_only_downwards():
    rank = {name: number for number, level in enumerate(LEVELS) for name in level}
    present = {path.name.removesuffix(".py") for path in (ROOT / "chatbot").iterdir() if path.name != "__pycache__"}
    assert present - {"__init__", "__main__", "py.typed"} == set(rank), "name every folder in the docstring of chatbot"
    for path in sorted((ROOT / "chatbot").rglob("*.py")):
        folder = path.relative_to(ROOT / "chatbot").parts[0].removesuffix(".py")
        if folder == "__init__" or path.name in ("__main__.py", "registration.py"):  # the doors
            continue
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("chatbot.")}
        assert all(rank[name] <= rank[folder] for name in used if name in rank), (path, used)


def test_folders_are_small():
    """A newcomer reads a folder at a glance: few files, none of them long."""
    for room in ROOMS:
        for folder in [ROOT / room, *(path for path in (ROOT / room).rglob("*") if path.is_dir())]:
            modules = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
            assert len(modules) <= 14, folder
            for path in modules:
                assert len(path.read_text(encoding="utf-8").splitlines()) <= 360, path


def test_the_files_that_run_first_exist():
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


def test_the_room_of_the_model_has_few_files_beside_its_folders():
    assert len([path for path in (ROOT / "chatbot").iterdir() if path.is_file()]) <= 6


def test_types_are_ignored_seldom_and_for_a_reason():
    ignored = [
        line for _, path in FILES for line in path.read_text(encoding="utf-8").splitlines() if "# type: ignore" in line
    ]
    assert len(ignored) <= 20
    assert not [line for line in ignored if not re.search(r"# type: ignore\[[a-z-]+\]  # \S+ \S+", line)]


def matches(module: str, patterns: list[str]) -> bool:
    """Whether mypy applies an override to a module: `a.b.*` means a.b and everything in it."""
    return module in patterns or any(f"{module}.".startswith(name[:-1]) for name in patterns if name.endswith(".*"))


def test_mypy_reads_every_module_whose_types_are_used():
    """A class of a module that it skips has no type, so that any use of it would pass."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    skipped, read = (override["module"] for override in project["tool"]["mypy"]["overrides"])
    used = set().union(*(imports_of(path) for _, path in FILES))
    names = [name.removeprefix("transformers.") for name in used if re.fullmatch(r"transformers\.\w+", name)]
    used |= {getattr(getattr(transformers, name, None), "__module__", "") for name in names}
    assert "transformers.models.auto.configuration_auto" in used
    wrong = [module for module in used if matches(module, skipped) and not matches(module, read)]
    assert wrong == [], "add these modules to the second override of mypy in pyproject.toml"
    assert matches("transformers.models.bert", skipped)


def test_the_rule_catches_an_offender(tmp_path):
    offender = tmp_path / "offender.py"
    for room, line in (
        ("chatbot", "from ui import app"),
        ("data_prep", "import training.run"),
        ("ui", "import data_prep"),
    ):
        offender.write_text(f"def f():\n    {line}\n")
        with pytest.raises(AssertionError):
            check_file(room, offender)
    offender.write_text("from chatbot.cli import chat\n")
    with pytest.raises(AssertionError):
        check_file("training", offender)


def test_text_modules_need_neither_torch_nor_gradio():
    code = f"import sys, {', '.join(TEXT_MODULES)}; print({{'torch', 'gradio', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("module", COMMANDS)
def test_help_answers_in_under_a_second(module):
    for _ in range(3):  # processor time, the best of three: a busy machine is not the command's fault
        started = sum(os.times()[2:4])
        result = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
        seconds = sum(os.times()[2:4]) - started
        assert result.returncode == 0
        assert "usage:" in result.stdout
        if seconds < 1:
            return
    pytest.fail(f"{seconds:.1f} s")

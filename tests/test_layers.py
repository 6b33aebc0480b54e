"""The import rule: ui -> chatbot; training -> data_prep -> chatbot; nobody imports ui, training or a cli."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("chatbot", "data_prep", "training", "ui")
ALLOWED = {
    "chatbot": {"chatbot"},
    "data_prep": {"data_prep", "chatbot"},
    "training": {"training", "data_prep", "chatbot"},
    "ui": {"ui", "chatbot"},
}
LEVELS = (  # of the chatbot package, lowest first; see its docstring
    {
        "errors",
        "bundled",
        "dialogue",
        "chat_template",
        "tokenizer",
        "dialogue_files",
        "locking",
        "similarity",
        "vectors",
        "layer_types",
        "registration",
        "native",
    },
    {"configuration", "precision", "state", "attention", "end_heads", "loss", "model", "foreign", "lora"},
    {"native_network", "native_slots", "steps", "snapshots"},
    {
        *("termination", "repetition", "banned_words", "reply_settings", "sampling", "next_token", "beam", "generate"),
        *("native_draw", "quality", "rerank", "gpt2", "checkpoint"),
    },
    {"bot", "lanes", "trace", "batching", "session"},
    {"evaluation"},
    {"cli", "__main__"},
)
TEXT_MODULES = (
    "chatbot",
    "chatbot.text.dialogue",
    "chatbot.text.chat_template",
    "chatbot.text.tokenizer",
    "chatbot.text.dialogue_files",
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
COMMANDS = ("data_prep.cli", "training.cli", "chatbot.cli", "ui.cli")


def imports_of(path: Path) -> set[str]:
    """Modules a file imports, at any depth of nesting; `from x import y` counts as x and x.y."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


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
        commands -= {"chatbot.cli", "chatbot.cli.add_model_options"}  # the options all commands share
    assert path.name == "__main__.py" or not commands


def test_data_prep_takes_only_the_text_modules_of_chatbot():
    for _, path in [entry for entry in FILES if entry[0] == "data_prep"]:
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("chatbot.")}
        assert used <= LEVELS[0], path


def test_chatbot_imports_only_downwards():
    rank = {name: number for number, level in enumerate(LEVELS) for name in level}
    for path in sorted((ROOT / "chatbot").rglob("*.py")):
        module = path.relative_to(ROOT / "chatbot").parts[0].removesuffix(".py")
        if module in ("__init__", "registration") or path.name == "__main__.py":  # the doors
            continue
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("chatbot.")}
        assert all(rank[name] <= rank[module] for name in used if name in rank), (path, used)
        assert module in rank, f"{module} has no level; add it to the docstring of chatbot and to LEVELS"


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
    seconds = []
    for _ in range(3):  # processor time, the best of three: a busy machine is not the command's fault
        started = sum(os.times()[2:4])
        result = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
        seconds.append(sum(os.times()[2:4]) - started)
        assert result.returncode == 0
        assert "usage:" in result.stdout
    assert min(seconds) < 1

"""Before torch is imported, which takes seconds, each command has said on stderr what it does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.stderr.flush()
            os._exit(77)
sys.meta_path.insert(0, NoTorch())
from {module} import {function} as command
command(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("module", "function", "arguments", "announced"),
    [
        ("chatbot.cli", "chat", ["--message", "你好"], "loading default …"),
        ("chatbot.cli", "evaluate", ["--data", "{data}", "--output", "{output}", "--json"], "loading default …"),
        ("chatbot.cli", "evaluate", ["--aptness", "--output", "{output}"], "loading {output} …"),
        ("ui.cli", "main", ["--port", "0", "--log-format", "text"], "loading default …"),
        (
            "training.cli",
            "main",
            ["--data", "{data}", "--init", "default", "--output", "{output}"],
            "loading default …",
        ),
        (
            "training.cli",
            "main",
            ["--data", "{data}", "--init", "default", "--output", "{output}", "--dry-run"],
            "measuring some steps … (a minute or two, nothing is written)",
        ),
        ("training.naming.cli", "main", ["--name", "小影", "--output", "{output}"], "loading default …"),
        (
            "training.likeness.cli",
            "main",
            ["--checkpoint", "default", "--data", "{data}"],
            "loading and measuring default, default …",
        ),
        (
            "chatbot.checkpoint.export.cli",
            "main",
            ["default", "--to", "hf", "--output", "{output}"],
            "loading default …",
        ),
    ],
)
def test_a_command_says_what_it_does_before_torch_is_imported(
    module, function, arguments, announced, default_set, tmp_path
):
    names = {"data": str(default_set), "output": str(tmp_path / "out")}
    code = CODE.format(module=module, function=function)
    command = [sys.executable, "-c", code, *(argument.format(**names) for argument in arguments)]
    environment = os.environ | {"XIANLIAO_LANG": "en"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 77, done.stderr  # torch was about to be imported
    assert announced.format(**names) in done.stderr.splitlines()
    assert done.stdout == ""


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_a_log_of_json_has_no_other_line(log_format):
    code = CODE.format(module="ui.cli", function="main")
    command = [sys.executable, "-c", code, "--port", "0", "--log-format", log_format]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (77, "")


@pytest.fixture(scope="module")
def default_set(tmp_path_factory):
    from data_prep.pipeline import build
    from data_prep.settings import PrepareSettings

    source = tmp_path_factory.mktemp("dialogues") / "a.jsonl"
    source.write_text("".join(f'["你好，我是{n}号", "你好呀，{n}号"]\n' for n in range(40)), encoding="utf-8")
    folder = source.parent / "set"
    build([str(source)], folder, PrepareSettings(tokenizer="default", valid_share=0.3))
    return folder

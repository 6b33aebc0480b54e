"""Cheap mistakes are answered without importing torch, and misspelt words get the nearest right one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CASES = {
    "chat": [
        (["--mesage", "你好"], 2, "unknown flag --mesage; did you mean --message?"),
        (["--max_reply_tokens", "5"], 2, "did you mean --max-reply-tokens?"),
        (["--message", ""], 1, "The message is empty"),
        (["--checkpoint", "defualt"], 1, "Did you mean default?"),
        (["--device", "mps" if sys.platform != "darwin" else "gpu"], 1, "is not available on this machine"),
        (["--dtype", "flaot32"], 1, "Did you mean float32?"),
        (["--temperature", "-1"], 1, "temperature must be between"),
    ],
    "evaluate": [
        (["--ouput", "x", "--data", "y"], 2, "did you mean --output?"),
        (["--checkpoint", "nope", "--data", "README.md", "--output", "x"], 1, "Cannot find the checkpoint folder nope"),
        (["--data", "nope.jsonl", "--output", "x"], 1, "nope.jsonl does not exist"),
    ],
    "prepare": [(["--inptu", "x", "--output", "y"], 2, "did you mean --input?")],
    "train": [
        (["--data", "nope", "--output", "x"], 1, "nope is not a prepared set"),
        (["--data", "nope", "--output", "x", "--init", "defualt"], 1, "Did you mean default?"),
        (["--data", "nope", "--output", "x", "--device", "gpu"], 1, "is not available"),
        (["--data", "nope", "--output", "x", "--config", "cpu_finetun"], 2, "did you mean cpu_finetune?"),
        (
            ["--data", "nope", "--output", "x", "--config", "mine"],
            2,
            "presets: base, cpu_finetune, cpu_smoke, latent, small",
        ),
        (["--data", "nope", "--output", "x", "--clip", "hard"], 2, "expected none or norm or soft"),
        (["--data", "nope", "--output", "x", "--dry-rum"], 2, "did you mean --dry-run?"),
    ],
    "serve": [
        (["--prot", "1"], 2, "did you mean --port?"),
        (["--checkpoint", "default", "nope"], 1, "Cannot find the checkpoint folder nope"),
    ],
    "export": [
        (["default", "--to", "hff", "--output", "x"], 2, "perhaps you meant hf?"),
        (["nope", "--to", "hf", "--output", "x"], 1, "Cannot find the checkpoint folder nope"),
    ],
    "name": [
        (["--nmae", "小满", "--output", "x"], 2, "did you mean --name?"),
        (["--name", "小 满", "--output", "x"], 1, "without spaces and punctuation"),
        (["--name", "小满", "--bot", "nope", "--output", "x"], 1, "Cannot find the checkpoint folder nope"),
        (["--name", "小满", "--output", "docs"], 1, "docs is not empty"),
    ],
}
HOMES = {
    "chat": ("chatbot.cli", "chat"),
    "evaluate": ("chatbot.cli", "evaluate"),
    "prepare": ("data_prep.cli", "main"),
    "train": ("training.cli", "main"),
    "serve": ("ui.cli", "main"),
    "export": ("chatbot.checkpoint.export.cli", "main"),
    "name": ("training.naming.cli", "main"),
}
"""Module and function of each command."""
SCRIPT = """
import contextlib, io, json, sys
from importlib import import_module
homes = json.loads(sys.argv[2])
results = []
for command, arguments in json.loads(sys.argv[1]):
    module, function = homes[command]
    main = getattr(import_module(module), function)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
    results.append((code, errors.getvalue(), "torch" in sys.modules))
print(json.dumps(results))
"""
FLAT = [(command, *case) for command, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def results():
    words = json.dumps([(command, arguments) for command, arguments, *_ in FLAT])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XIANLIAO_LANG": "en"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, words, json.dumps(HOMES)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(FLAT)), ids=[f"{c} {' '.join(a)}" for c, a, *_ in FLAT])
def test_a_mistake_is_answered_without_torch(number, results):
    _, _, code, words = FLAT[number]
    actual, message, has_torch = results[number]
    assert words in message
    assert actual == code
    assert not has_torch
    assert len(message.strip().splitlines()) <= 2

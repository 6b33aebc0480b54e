"""The scripts in examples/ that need no export run as their first lines say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, SAMPLES


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_chat_streams_a_reply_and_answers_with_a_history():
    lines = run("examples/chat.py").splitlines()
    assert "(eos)" in lines[-1]
    grown = [line for line in lines if "→" not in line]
    assert len(grown) > 2
    assert grown[-1].startswith(grown[-2])


@pytest.mark.slow
def test_a_file_is_scored_and_answered(tmp_path):
    path = tmp_path / "some.jsonl"
    dialogues = (SAMPLES / "everyday.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    path.write_text("\n".join(dialogues) + "\n\n", encoding="utf-8")
    first, *replies = run("examples/evaluate_file.py", str(path)).splitlines()
    assert first.startswith("3 dialogues, ")
    assert first.endswith(" nats/unit")
    assert len(replies) == 3


@pytest.mark.slow
def test_messages_with_roles_and_a_saved_conversation():
    lines = run("examples/sessions.py").splitlines()
    assert lines[0].startswith("<Chatbot default: ")
    assert lines[1] == "True"
    assert lines[2].startswith("<ChatSession of 4 turns")
    assert [line.partition(":")[0] for line in lines[3:]] == ["user", "assistant"] * 2


@pytest.mark.slow
def test_generate_ends_within_the_bound_with_the_rules():
    with_rules, without = run("examples/generate_bound.py").splitlines()
    tokens, bound = map(int, re.findall(r"\d+", with_rules))
    assert tokens <= bound + 1
    assert int(re.findall(r"\d+", without)[0]) > tokens


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    notebook = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    code = "\n".join(cells).replace("STEPS = 16", "STEPS = 2")
    assert "STEPS = 2" in code
    script = tmp_path / "notebook.py"
    script.write_text(code, encoding="utf-8")
    lines = run(str(script)).splitlines()
    assert re.fullmatch(r"\d\.\d{3} -> \d\.\d{3} nats/unit", lines[-3])
    assert all(line.count("|") == 2 for line in lines[-2:])

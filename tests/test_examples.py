"""The scripts in examples/ that need no export run as their first lines say."""

from __future__ import annotations

import os
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

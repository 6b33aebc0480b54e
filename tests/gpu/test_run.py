"""The script for a day with a GPU: its tiny form on a CPU, and the whole of it on CUDA."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.gpu.__main__ import RECIPE, STEPS


def run(folder, *options: str) -> str:
    """Run the script and return its report."""
    command = ["tests/gpu/run.sh", "--output", str(folder), *options]
    environment = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2400, check=False)
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert done.returncode == 0, report + done.stderr[-2000:]
    return report


@pytest.mark.slow
def test_every_step_runs_in_its_tiny_form(tmp_path):
    report = run(tmp_path, "--dry", "--minutes", "30")  # a busy machine takes longer
    assert [line.removeprefix("## ") for line in report.splitlines() if line.startswith("## ")] == [*STEPS, RECIPE]
    assert "FAILED" not in report
    assert "left out" not in report
    assert "the same weights" in report
    assert "4 of 4 replies are the same" in report
    assert "你好 → " in report


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_whole_report(tmp_path):
    assert "FAILED" not in run(tmp_path)

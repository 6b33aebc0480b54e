"""Flags with dashes, the old spelling with underscores, and help that does not depend on docstrings."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields

import pytest

from tests.conftest import ROOT
from training.arguments import build_parser, help_texts, read_settings, setting_names, spelling_warning
from training.settings import SettingsError, TrainSettings

BOTH = [
    ["--data", "a", "--output", "b", "--max-steps", "3", "--model.layer-types", "softmax", "linear_elu1"],
    ["--data", "a", "--output", "b", "--max_steps", "3", "--model.layer_types", "softmax", "linear_elu1"],
]


@pytest.mark.parametrize("argv", BOTH, ids=["dashes", "underscores"])
def test_both_spellings_give_the_same_settings(argv):
    settings, origins = read_settings(argv)
    assert settings.max_steps == 3
    assert settings.model.layer_types == ["softmax", "linear_elu1"]
    assert origins == dict.fromkeys(("data", "output", "max_steps", "model.layer_types"), "flag")


def test_only_the_old_spelling_is_warned_of_in_one_line():
    assert spelling_warning(BOTH[0]) is None
    assert spelling_warning(["--unknown_flag", "--init", "my_model"]) is None
    warning = spelling_warning([*BOTH[1], "--max_steps=4"])
    assert "--max_steps is now --max-steps, --model.layer_types is now --model.layer-types" in warning
    assert warning.count("--max_steps") == 1
    assert "\n" not in warning


def test_the_command_warns_on_stderr(tmp_path, capsys):
    from training.cli import main

    assert main(["--max_steps", "0", "--data", str(tmp_path), "--output", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["warning", "error"]
    assert "--max-steps must be at least 1" in lines[1]


def test_faults_of_old_spellings_name_the_new_one():
    with pytest.raises(SettingsError, match="unknown flag --max-step; did you mean --max-steps"):
        read_settings(["--data", "a", "--output", "b", "--max_step", "3"])


def test_the_help_has_a_text_for_every_setting_and_shows_dashes():
    text = build_parser().format_help()
    assert not re.search(r"--[a-z.]*_", text)
    assert all(f"--{name.replace('_', '-')}" in text for name in setting_names())
    assert set(help_texts()) >= set(setting_names()) | {entry.name for entry in fields(TrainSettings)}
    assert all(help_texts().values())


def test_help_without_docstrings_is_the_same():
    """python -OO removes docstrings."""
    texts = [
        subprocess.run(
            [sys.executable, *flags, "-m", "training", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for flags in ([], ["-OO"])
    ]
    assert "peak learning rate" in texts[0]
    assert texts[0] == texts[1]

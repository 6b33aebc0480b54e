"""checkpoints/recipe/make.sh from corpora to a checkpoint in one call, with small corpora and few steps."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatbot.chat.bot import Chatbot
from chatbot.text.dialogue_files import read_dialogues
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
OPENERS = {"gz": gzip.open, "xz": lzma.open, "json": open, "txt": open}
CORPORA = (
    "LCCC-base_valid.json",
    "cdial_toy_train.txt",
    "xpersona_zh.jsonl.gz",
    "cped_valid.jsonl.gz",
    "dgk_subtitles.jsonl.xz",
    "kdconv_dev.jsonl.gz",
    "cpsycoun.jsonl.xz",
    "smile.jsonl.xz",
)


def write_corpora(folder: Path) -> None:
    """Write every eighth of this project's dialogues to each file, in the format of the file."""
    project_dialogues = [
        turns
        for path in sorted((ROOT / "checkpoints" / "recipe" / "dialogues" / "identity").glob("*.jsonl"))
        for turns in read_dialogues(path)
    ]
    folder.mkdir()
    for index, name in enumerate(CORPORA):
        dialogues = [
            [" ".join(turn) for turn in turns] if index < 2 else turns for turns in project_dialogues[index::8]
        ]
        with OPENERS[name.rpartition(".")[2]](folder / name, "wt", encoding="utf-8") as file:
            if name.endswith(".json"):
                json.dump(dialogues, file, ensure_ascii=False)
            elif name.endswith(".txt"):
                file.writelines("\t".join(turns) + "\n" for turns in dialogues)
            else:
                file.writelines(json.dumps(turns, ensure_ascii=False) + "\n" for turns in dialogues)


def make(corpora: Path, work: Path, *steps: str) -> None:
    """Run the script from another directory."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", ROOT / "checkpoints" / "recipe" / "make.sh", corpora, work, *steps]
    environment = {**os.environ, "PATH": path, "SHORTER": "2000", "THREADS": "1"}  # another test has the other core
    done = subprocess.run(command, env=environment, cwd=work.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_one_call_goes_from_the_corpora_to_a_measured_checkpoint(tmp_path):
    corpora, work = tmp_path / "corpora", tmp_path / "work"
    write_corpora(corpora)
    make(corpora, work)

    bot = Chatbot.from_pretrained(work / "default")
    assert bot.reply(["你好"], seed=0)
    generation = json.loads((work / "default" / "generation_config.json").read_text())
    assert (generation["temperature"], generation["candidates"]) == (0.6, 4)
    assert "!妈妈的" in generation["banned_words"]
    assert (work / "default" / "vectors.safetensors").is_file()
    assert "nats/unit" in (work / "report" / "report.md").read_text()
    assert "who are you, 20 phrasings" in (work / "report" / "behaviour.md").read_text()

    trained = {path: path.read_bytes() for path in work.glob("*/model.safetensors")}
    make(corpora, work, "data", "pretrain")
    assert {path: path.read_bytes() for path in work.glob("*/model.safetensors")} == trained

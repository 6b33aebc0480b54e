"""Texts of kinds that are in no list: program code, English prose and micro-blogs seldom get the reply to people in need."""

from __future__ import annotations

import importlib.util
import json
import random

import pytest

from chatbot.safety import Safety
from tests.conftest import ROOT

MICRO_BLOGS = ROOT.parent / "shared" / "data" / "LCCC-base_valid.json"
CODE = "chatbot/*/*.py"
"""Files of which checkpoints/recipe/need/latin.txt.xz has no line."""


@pytest.fixture(scope="module")
def safety() -> Safety:
    return Safety.load()


def share(safety: Safety, texts: list[str]) -> float:
    """Share of the texts that are taken for need, among a thousand of them at random."""
    chosen = random.Random(0).sample(texts, min(1_000, len(texts)))
    return sum(map(safety.is_crisis, chosen)) / len(chosen)


def test_lines_of_code_are_not_taken_for_need(safety):
    """13 % were, when the classifier had seen only Chinese sentences."""
    lines = {line.strip() for path in sorted(ROOT.glob(CODE)) for line in path.read_text("utf-8").splitlines()}
    assert share(safety, sorted(line for line in lines if len(line) > 12)) <= 0.01


def test_random_words_and_characters_are_not_taken_for_need(safety):
    source = random.Random(1)
    characters = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    texts = ["".join(source.choices(characters, k=source.randint(4, 40))) for _ in range(1_000)]
    assert share(safety, texts) <= 0.02


@pytest.mark.slow
@pytest.mark.skipif(not MICRO_BLOGS.is_file(), reason="needs LCCC beside the project")
def test_micro_blogs_are_not_taken_for_need(safety):
    """2 % were, when the classifier had seen none; of these, none is among the texts that it was trained on."""
    spec = importlib.util.spec_from_file_location("need_train", ROOT / "checkpoints" / "recipe" / "need" / "train.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    turns = {turn.replace(" ", "") for turns in json.loads(MICRO_BLOGS.read_text("utf-8")) for turn in turns}
    assert share(safety, sorted(filter(recipe.is_only_measured, turns))) <= 0.01

"""The lists that measure the classifier are not those that it is trained on."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest

from chatbot.safety import FOLDER, Safety
from chatbot.safety.classifier import NeedClassifier
from chatbot.safety.folding import fold
from tests.conftest import ROOT

CORPORA = ROOT.parent / "shared" / "data"
TRAINED = ROOT / "checkpoints" / "recipe" / "need"
MEASURED = ROOT / "chatbot" / "evaluation" / "probes"


def sentences(pattern: str, folder=TRAINED) -> set[str]:
    """Folded sentences of the lists with a name of this pattern."""
    texts = [path.read_text(encoding="utf-8") for path in folder.glob(pattern)]
    return {fold(line).text for text in texts for line in text.splitlines() if line.strip() and line[0] != "#"}


@pytest.mark.parametrize("split", ["held", "fresh", "spoken", "later", "veiled"])
@pytest.mark.parametrize("kind", ["need", "harmless"])
def test_no_sentence_of_a_list_that_is_only_measured_is_trained_on(kind, split):
    measured = sentences(f"{kind}_{split}.txt", MEASURED)
    assert len(measured) > 40
    assert not measured & (sentences("need_*.txt") | sentences("harmless_*.txt"))


def test_no_sentence_is_trained_on_as_both():
    assert not sentences("need_*.txt") & sentences("harmless_*.txt")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The module that trains the classifier."""
    spec = importlib.util.spec_from_file_location("need_train", TRAINED / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_classifier_was_trained_on_the_sentences_that_are_here(recipe):
    """Fails when a list, the dialogues or the folding has changed: run checkpoints/recipe/need/train.py again."""
    assert NeedClassifier.load(FOLDER / "need.npz").inputs == recipe.hash_of(recipe.read_sentences(Safety.load()))


@pytest.mark.slow
@pytest.mark.skipif(not (CORPORA / "LCCC-base_valid.json").is_file(), reason="needs LCCC beside the project")
def test_training_gives_the_classifier_again(recipe):
    """Byte for byte on one computer; sums in another order may round a weight to its neighbour."""
    written, trained = NeedClassifier.load(FOLDER / "need.npz"), recipe.train(Safety.load(), CORPORA)
    assert (trained.threshold, trained.veto, trained.inputs) == (written.threshold, written.veto, written.inputs)
    assert trained.scale == pytest.approx(written.scale, rel=0.02)
    assert trained.bias == pytest.approx(written.bias, abs=0.05)
    assert np.abs(trained.weights.astype(int) - written.weights).max() <= 1


def test_a_changed_sentence_changes_the_hash_of_the_inputs(recipe):
    before = {"need": ["我想死"], "harmless": ["笑死我了"], "everyday": ["你好"]}
    assert recipe.hash_of(before) == recipe.hash_of({**before, "need": ["我想，死"]})  # the same after folding
    assert recipe.hash_of(before) != recipe.hash_of({**before, "need": ["我想死了"]})
    assert recipe.hash_of(before) != recipe.hash_of({**before, "harmless": ["你好"], "everyday": ["笑死我了"]})

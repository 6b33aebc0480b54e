"""The lists that measure the classifier are not those that it is trained on."""

from __future__ import annotations

import pytest

from chatbot.safety.folding import fold
from tests.conftest import ROOT

TRAINED = ROOT / "checkpoints" / "recipe" / "need"
MEASURED = ROOT / "chatbot" / "evaluation" / "probes"


def sentences(pattern: str, folder=TRAINED) -> set[str]:
    """Folded sentences of the lists with a name of this pattern."""
    texts = [path.read_text(encoding="utf-8") for path in folder.glob(pattern)]
    return {fold(line).text for text in texts for line in text.splitlines() if line.strip() and line[0] != "#"}


@pytest.mark.parametrize("split", ["held", "fresh", "spoken"])
@pytest.mark.parametrize("kind", ["need", "harmless"])
def test_no_sentence_of_a_list_that_is_only_measured_is_trained_on(kind, split):
    measured = sentences(f"{kind}_{split}.txt", MEASURED)
    assert len(measured) > 40
    assert not measured & (sentences("need_*.txt") | sentences("harmless_*.txt"))


def test_no_sentence_is_trained_on_as_both():
    assert not sentences("need_*.txt") & sentences("harmless_*.txt")

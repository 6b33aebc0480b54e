"""The fast forms of folding, phrases and n-grams give what their definitions give."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chatbot.safety import Phrases
from chatbot.safety.classifier import BUCKETS, LONGEST_NGRAM, MULTIPLIERS, buckets_of
from chatbot.safety.folding import CLAUSE, NONE, Folded, fold, fold_each, fold_in_bulk
from chatbot.safety.phrases import Span, _Cover, _is_apart, _parts

CHARACTERS = st.one_of(
    st.sampled_from(
        "我想死自殺Ａa1.．。，, \n！…_\u200b\u0308\u3164é㍿\ufdfa😀\U00020000\ud800\udfff\ue000\ue004\uf8ff\U0010ffff"
    ),
    st.characters(),
    st.characters(categories=["Cs", "Co", "Mn", "Cf", "Lo"]),
)


@given(st.text(CHARACTERS, max_size=80))
def test_folding_in_bulk_is_folding_each_character(text):
    assert fold_in_bulk(text) == fold_each(text) == fold(text)
    assert fold(text * 3) == fold_each(text * 3)


def found_by_definition(lines: tuple[str, ...], folded: Folded) -> list[Span]:
    """Spans of phrases, without harmless ones: every literal of every line is looked for on its own."""
    text, breaks = folded.text, folded.breaks
    covers, hits = [], []
    for line in lines:
        harmless, phrases = line.startswith("!"), []
        for phrase in line.removeprefix("!").split("&"):
            parts = [
                [
                    (start, end)
                    for literal, begins, ends in part
                    for start in range(len(text) - len(literal) + 1)
                    for end in [start + len(literal)]
                    if text.startswith(literal, start)
                    and _is_apart(folded, (start, end))
                    and (not begins or breaks[start] > NONE)
                    and (not ends or breaks[end] > NONE)
                    and not (harmless and max(breaks[start + 1 : end], default=NONE) >= CLAUSE > breaks[end])
                ]
                for part in _parts(phrase.strip())
            ]
            phrases.append(Phrases._joined(folded, parts, harmless))
        if harmless:
            covers += phrases[0]
        elif all(phrases):
            hits.append(phrases)
    cover = _Cover(covers)
    left = [[[span for span in spans if not cover.holds(span)] for spans in phrases] for phrases in hits]
    return [span for phrases in left if all(phrases) for span in phrases[0]]


LINES = (
    "自杀",
    "!自杀(率|式)",
    "(想|要)*死$",
    "^死了(算|)",
    "药 & (死|走)",
    "!(想|)死(海|你)",
    "kill*me",
    "我要去死",
    "活(着|)*(没|无)*意思",
)


@given(st.text(st.sampled_from("自杀想要死药走我去海你了算率活着没意思，。 a"), max_size=40))
def test_phrases_are_those_of_the_definition(text):
    folded = fold(text)
    assert sorted(Phrases(LINES)._hits(folded, [])) == sorted(found_by_definition(LINES, folded))


@given(st.lists(st.text("我想死了ab\U00020000", max_size=12), min_size=1, max_size=6))
def test_buckets_are_those_of_the_different_ngrams(texts):
    buckets, counts = buckets_of(texts)
    ends = np.cumsum([0, *counts]).tolist()
    for text, (start, end) in zip(texts, pairwise(ends), strict=True):
        expected = set()
        for size in range(1, LONGEST_NGRAM + 1):
            for ngram in zip(*(f"^{text}$"[place:] for place in range(size)), strict=False):
                value = (
                    sum(ord(letter) * int(MULTIPLIERS[size - 1, place]) for place, letter in enumerate(ngram)) % 2**32
                )
                expected.add(((value ^ value >> 15) * 0x2C1B3C6D % 2**32 >> 16) % BUCKETS)
        assert buckets[start:end].tolist() == sorted(expected)

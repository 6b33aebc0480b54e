"""The fast forms of folding, phrases and n-grams give what their definitions give."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chatbot.safety import Phrases
from chatbot.safety.classifier import BITS, BUCKETS, LONGEST_NGRAM, MULTIPLIERS, buckets_of
from chatbot.safety.folding import CLAUSE, NONE, SENTENCE, Folded, fold, fold_each, fold_in_bulk
from chatbot.safety.phrases import _ends_inside_a_clause, _is_apart, _parts
from chatbot.safety.spans import GAP, LATIN_GAP, SPEAKING, Cover, Joiner, Span

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


def joined_by_definition(folded: Folded, parts: list[list[Span]], harmless: bool) -> list[Span]:
    """Spans of whole phrases, from the spans of their parts."""
    spans = set(parts[0])
    for part in parts[1:]:
        spans = {
            (first, end)
            for first, before in spans
            for start, end in part
            for gap in [folded.text[before:start]]
            if before <= start
            and (len(gap) <= GAP or (gap.isascii() and len(gap) <= LATIN_GAP))
            and max(folded.breaks[before : start + 1]) < (CLAUSE if harmless else SENTENCE)
            and not (harmless and SPEAKING & set(gap))
        }
    return sorted(spans)


def found_by_definition(lines: tuple[str, ...], folded: Folded) -> list[Span]:
    """Spans of phrases, without harmless ones: every literal of every line is looked for on its own."""
    text, breaks = folded.text, folded.breaks
    covers, hits = [], []
    for line in lines:
        harmless, phrases = line.startswith("!"), []
        for phrase in line.lstrip("!").split("&"):
            parts = [
                [
                    (start, end)
                    for literal, edges in part.items()
                    for begins, ends in edges
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
            phrases.append(joined_by_definition(folded, parts, harmless))
        if harmless:
            covers += phrases[0]
        elif all(phrases):
            hits.append(phrases)
    cover = Cover(covers)
    left = [[[span for span in spans if not cover.holds(span)] for spans in phrases] for phrases in hits]
    return [span for phrases in left if all(phrases) for span in phrases[0]]


def innocent_by_definition(lines: tuple[str, ...], folded: Folded) -> set[int]:
    """Indices of the letters in harmless phrases that the classifier does not see."""
    spans = found_by_definition(tuple(line.removeprefix("!!") for line in lines if line.startswith("!!")), folded)
    return {
        index
        for start, end in spans
        if not _ends_inside_a_clause(start, end, bytes(folded.breaks))
        and not SPEAKING & set(folded.text[start + 1 : end])
        if max(folded.breaks[start + 1 : end], default=NONE) < CLAUSE
        for index in range(start, end)
    }


LINES = (
    "自杀",
    "!自杀(率|式)",
    "(想|要)*死$",
    "^死了(算|)",
    "药 & (死|走)",
    "!(想|)死(海|你)",
    "!!活(着|)*你",
    "kill*me",
    "我要去死",
    "活(着|)*(没|无)*意思",
)


@given(st.text(st.sampled_from("自杀想要死药走我去海你了算率活着没意思，。 a"), max_size=40))
def test_phrases_are_those_of_the_definition(text):
    folded = fold(text)
    assert sorted(Phrases(LINES)._hits(folded, [])) == sorted(found_by_definition(LINES, folded))


@given(st.text(st.sampled_from("活着你想死海，。 a"), max_size=40))
def test_letters_that_the_classifier_does_not_see_are_those_of_the_definition(text):
    folded = fold(text)
    rest = Phrases(LINES).without_innocent(folded)
    left = sorted(set(range(len(folded.text))) - innocent_by_definition(LINES, folded))
    assert rest.text == "".join(folded.text[index] for index in left)
    assert rest.places == tuple(folded.places[index] for index in left)
    assert len(rest.breaks) == len(left) + 1
    assert rest.breaks[0] == rest.breaks[-1] == SENTENCE
    assert all(rest.breaks[at] >= folded.breaks[index] for at, index in enumerate(left))


SPANS = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 3)), min_size=1, max_size=12)


@given(
    st.text(st.sampled_from("我看着a，。 "), min_size=80, max_size=90),
    st.lists(SPANS, min_size=2, max_size=3),
    st.booleans(),
)
def test_parts_are_joined_in_bulk_as_one_by_one(text, parts, harmless):
    folded = fold(text)
    size = len(folded.text)
    spans = [[(start, min(start + letters, size)) for start, letters in part if start < size] for part in parts]
    if not all(spans):
        return
    joiner, cover = Joiner(folded), Cover(joined_by_definition(folded, spans, harmless))
    one_by_one, in_bulk = joiner.joined(spans, harmless), joiner._joined_in_bulk(spans, harmless)
    assert sorted(one_by_one) == sorted(in_bulk)
    assert set(in_bulk) <= set(joined_by_definition(folded, spans, harmless))
    if harmless:
        assert all(Cover(in_bulk).holds(span) for span in joined_by_definition(folded, spans, harmless))
    else:
        assert sorted(in_bulk) == joined_by_definition(folded, spans, harmless)
    assert all(cover.holds(span) for span in in_bulk)


@given(st.lists(st.text("我想死了ab\U00020000", max_size=12), min_size=1, max_size=6))
def test_buckets_are_those_of_the_different_ngrams(texts):
    buckets, counts = buckets_of(texts)
    ends = np.cumsum([0, *counts]).tolist()
    for text, (start, end) in zip(texts, pairwise(ends), strict=True):
        expected = set()
        for size in range(1, LONGEST_NGRAM + 1):
            for ngram in zip(*(f"^{text}$"[shift:] for shift in range(size)), strict=False):
                value = (
                    sum(ord(letter) * int(MULTIPLIERS[size - 1, index]) for index, letter in enumerate(ngram)) % 2**32
                )
                expected.add(((value ^ value >> 15) * 0x2C1B3C6D % 2**32 >> (32 - BITS)) % BUCKETS)
        assert buckets[start:end].tolist() == sorted(expected)

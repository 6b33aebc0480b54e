"""Lists of phrases, and their occurrences in a text."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, product
from math import prod

import ahocorasick

from chatbot.errors import XianliaoError
from chatbot.safety.folding import CLAUSE, NONE, SENTENCE, Folded, fold, is_latin

GAP, LATIN_GAP = 8, 32
"""Maximum number of letters that `*` matches: in general, and if all of them are Latin."""
SPELLED_OUT = 5
"""Minimum length of a phrase in Latin letters that also matches with spaces between its letters (s u i c i d e)."""
PIECE_LETTERS = 8192
MAX_READINGS = 5000
"""Maximum number of readings of a part of a line."""
SPEAKING = frozenset("我想要")
"""Words of a person who says what he or she wants. They make a harmless phrase or a title count."""
_TITLE = re.compile("《([^《》]*)》")
Span = tuple[int, int]


class SafetyError(XianliaoError):
    """Raised when a safety file is missing or invalid."""


class _Cover:
    """Spans of a text, searched in logarithmic time for one that covers another span: a message can have thousands."""

    def __init__(self, spans: Iterable[Span]):
        ordered = sorted(spans)
        self._starts = [start for start, _ in ordered]
        self._furthest = [-1, *accumulate((end for _, end in ordered), max)]

    def holds(self, span: Span) -> bool:
        """Whether one of the spans contains `span`."""
        return self._furthest[bisect_right(self._starts, span[0])] >= span[1]

    def holds_more_than(self, span: Span) -> bool:
        """Whether one of the spans contains `span` and is longer than it."""
        longer_before = self._furthest[bisect_left(self._starts, span[0])] >= span[1]
        return longer_before or self._furthest[bisect_right(self._starts, span[0])] > span[1]


class Phrases:
    """List of phrases that are matched in one pass (Aho and Corasick 1975), in all spellings of a text.

    Lines and texts are folded (`chatbot.safety.folding`). In a line

    * `(a|b|)` matches a, b or no letter;
    * `*` matches at most `GAP` letters of the same sentence, or `LATIN_GAP` Latin letters;
    * `^` before and `$` after a part or alternative match an edge: punctuation, a space or the end of the text;
    * `a & b` needs both phrases, anywhere in the text;
    * `!` at the beginning marks a harmless phrase: a phrase inside it does not count, one beside it does. In a
      harmless phrase `*` matches only letters of the same clause other than 我, 想 and 要.

    A phrase can cross the end of a clause only if one of the two clauses is inside it: 自。杀 matches, 他来自。杀了鸡
    does not. A phrase that begins or ends with a Latin letter or digit does not match next to another one.

    Args:
        lines: The phrases.
        spares_titles: Whether a phrase inside a longer title in 《》 is harmless.

    Raises:
        SafetyError: A line cannot be read.
    """

    def __init__(self, lines: Sequence[str], spares_titles: bool = False):
        self.lines = tuple(lines)
        self._spares_titles = spares_titles
        self._patterns: list[tuple[bool, list[int]]] = []  # harmless, the last index of each phrase joined by &
        uses: defaultdict[str, set[tuple[int, int, bool, bool]]] = defaultdict(set)
        for number, line in enumerate(lines):
            phrases = [_parts(phrase.strip()) for phrase in line.removeprefix("!").split("&")]
            if line.startswith("!") and len(phrases) > 1:
                raise SafetyError(f"The harmless phrase {line!r} has a &; write two lines.")
            parts = [part for phrase in phrases for part in phrase]
            self._patterns.append((line.startswith("!"), list(accumulate(map(len, phrases)))))
            for index, literals in enumerate(parts):
                for text, begins, ends in literals:
                    uses[text].add((number, index, begins, ends))
        self._automaton = ahocorasick.Automaton()
        for text, entries in uses.items():
            self._automaton.add_word(text, (len(text), sorted(entries) if len(entries) > 1 else list(entries)))
        if uses:
            self._automaton.make_automaton()

    def __contains__(self, text: str) -> bool:
        """Whether the text contains one of the phrases."""
        return bool(self.find(text))

    def find(self, text: str) -> list[Span]:
        """Return the spans (start, end) of phrases in the original text, without harmless ones."""
        return [(places[0], places[-1] + 1) for places in self.places(text)]

    def places(self, text: str, folded: Folded | None = None) -> list[tuple[int, ...]]:
        """Return the indices of the letters of each phrase, without the characters between them.

        Args:
            text: The text.
            folded: `fold(text)`, if the caller has it already.
        """
        if not len(self._automaton):
            return []
        plain = fold(text) if folded is None else folded
        titles = _titles(text, plain) if self._spares_titles else []
        found = {plain.places[start:end]: None for start, end in self._hits(plain, titles)}
        filled = plain.without_fillers()
        if filled is not plain:
            found |= {filled.places[start:end]: None for start, end in self._hits(filled, [])}
        return list(found)

    def _hits(self, folded: Folded, titles: Sequence[Span]) -> list[Span]:
        """Return the spans of phrases in the folded text, without harmless ones."""
        found: defaultdict[tuple[int, int], list[Span]] = defaultdict(list)
        text, separators = folded.text, bytes(folded.breaks)
        for last, (size, entries) in _matches(self._automaton, text):
            span = start, end = last + 1 - size, last + 1
            is_plain = separators.count(NONE, start + 1, end) == size - 1 and not text[start:end].isascii()
            if (is_plain and not is_latin(text[start]) and not is_latin(text[last])) or _is_apart(folded, span):
                for number, index, begins, ends in entries:
                    at_edges = (not begins or folded.breaks[span[0]] > NONE) and (
                        not ends or folded.breaks[span[1]] > NONE
                    )
                    if at_edges:
                        found[number, index].append(span)
        hits, covers = [], []
        for number in sorted({number for number, index in found if index == 0}):
            harmless, ends = self._patterns[number]
            spans = [
                self._joined(folded, [found.get((number, index), []) for index in range(start, end)], harmless)
                for start, end in pairwise([0, *ends])
            ]
            if harmless:
                covers += spans[0]
            elif all(spans):
                hits.append(spans)

        in_harmless, in_title = _Cover(covers), _Cover(titles)

        def counts(span: Span) -> bool:
            return not in_harmless.holds(span) and not in_title.holds_more_than(span)

        left = [[list(filter(counts, spans)) for spans in phrases] for phrases in hits]
        return [span for phrases in left if all(phrases) for span in phrases[0]]

    @staticmethod
    def _joined(folded: Folded, parts: Sequence[Sequence[Span]], harmless: bool) -> list[Span]:
        """Return the spans of whole phrases, from the spans of their parts sorted by their ends."""
        spans = set(parts[0])
        for part in parts[1:]:
            following = sorted(part)
            spans = {
                (start, each[1])
                for start, end in spans
                for each in following[
                    bisect_left(following, (end, 0)) : bisect_right(following, (end + LATIN_GAP + 1, 0))
                ]
                if (each[0] - end <= GAP or folded.text[end : each[0]].isascii())
                and max(folded.breaks[end : each[0] + 1]) < (CLAUSE if harmless else SENTENCE)
                and not (harmless and SPEAKING & set(folded.text[end : each[0]]))
            }
        return sorted(spans)


def _matches(automaton: ahocorasick.Automaton, text: str) -> Iterator[tuple[int, tuple[int, list]]]:
    """Yield the last index and the value of each match. Text without a match is read in pieces of about a millisecond,
    because Python's lock is held meanwhile."""
    matches = automaton.iter(text[:PIECE_LETTERS])
    yield from matches
    for start in range(PIECE_LETTERS, len(text), PIECE_LETTERS):
        matches.set(text[start : start + PIECE_LETTERS])
        yield from matches


def _titles(text: str, folded: Folded) -> list[Span]:
    """Return the spans of titles in the folded text. A whole message with 我, 想 or 要 is a sentence, not a title."""
    spans = [
        (bisect_left(folded.places, title.start(1)), bisect_left(folded.places, title.end(1)))
        for title in _TITLE.finditer(text)
    ]
    is_sentence = spans == [(0, len(folded.text))] and not SPEAKING.isdisjoint(folded.text)
    return [] if is_sentence else spans


def _is_apart(folded: Folded, span: Span) -> bool:
    """Whether a span consists of whole words, and contains every clause that it crosses into as a whole."""
    (start, end), text, breaks = span, folded.text, folded.breaks
    inner = [place for place in range(start + 1, end) if breaks[place] != NONE]
    if is_latin(text[start]) and start and breaks[start] == NONE and is_latin(text[start - 1]):
        return False
    if is_latin(text[end - 1]) and end < len(text) and breaks[end] == NONE and is_latin(text[end]):
        return False
    if inner and end - start < SPELLED_OUT and all(map(is_latin, text[start:end])):
        return False
    for place in inner:
        if breaks[place] >= CLAUSE:
            before = next(at for at in range(place - 1, -1, -1) if breaks[at] >= CLAUSE)
            after = next(at for at in range(place + 1, len(breaks)) if breaks[at] >= CLAUSE)
            if before < start and after > end:
                return False
    return True


def _parts(line: str) -> list[set[tuple[str, bool, bool]]]:
    """Return the possible literals of each part of a line, and whether each part needs an edge before it and after it."""
    parts = []
    for part in line.split("*"):
        texts = _readings(part, line)
        literals = {(text.strip("^$"), text.startswith("^"), text.endswith("$")) for text in texts}
        if any(not text or "^" in text or "$" in text for text, *_ in literals):
            raise SafetyError(f"The phrase {line!r} has a part without a letter, or ^ or $ inside a part.")
        parts.append(literals)
    return parts


def _readings(part: str, line: str) -> list[str]:
    """Return all readings of a part of a line, folded."""
    return ["".join(chosen) for chosen in product(*choices_of(part, line))]


def choices_of(part: str, line: str) -> list[list[str]]:
    """Return the folded alternatives of each piece of a part of a line; a reading takes one alternative per piece.

    Raises:
        SafetyError: The line cannot be read.
    """
    pieces = re.split(r"\(([^()]*)\)", part)
    if any(mark in piece for piece in pieces[::2] for mark in "()|"):
        raise SafetyError(f"The phrase {line!r} has a bracket or | without its counterpart; write (a|b).")
    choices = [piece.split("|") if at % 2 else [piece] for at, piece in enumerate(pieces)]
    if prod(map(len, choices)) > MAX_READINGS:
        raise SafetyError(
            f"The phrase {line!r} has more than {MAX_READINGS:,} readings in a part; write * or two lines."
        )
    return [[_folded(text, line) for text in texts] for texts in choices]


def _folded(text: str, line: str) -> str:
    """Fold one alternative of a phrase line and keep its marks for the start (`^`) and end (`$`) of a message."""
    inner = text.removeprefix("^").removesuffix("$")
    folded = fold(inner).text
    if (inner.strip() and not folded) or "^" in inner or "$" in inner:
        raise SafetyError(f"The phrase {line!r} has {text!r}, which has no letter, or ^ or $ inside; leave it out.")
    return "^" * text.startswith("^") + folded + "$" * text.endswith("$")


def lines_of(text: str) -> list[str]:
    """Return the lines of a list without empty lines and comments, which begin with #."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and line != "!"]

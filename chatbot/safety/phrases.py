"""Lists of phrases, and their occurrences in a text."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from math import prod

import ahocorasick

from chatbot.errors import XianliaoError
from chatbot.safety.characters import skeleton
from chatbot.safety.folding import CLAUSE, NONE, SENTENCE, Folded, fold, is_latin
from chatbot.safety.spans import SPEAKING, Cover, Joiner, Span

SPELLED_OUT = 5
"""Minimum length of a phrase in Latin letters that also matches with spaces between its letters (s u i c i d e)."""
PIECE_LETTERS = 8192
MAX_READINGS = 5000
"""Maximum number of readings of a part of a line, that is, of texts that its alternatives allow."""
_LATIN = re.compile("[a-z]+")
_TITLE = re.compile("《([^《》]*)》")


class SafetyError(XianliaoError):
    """Raised when a safety file is missing or invalid."""


Edges = tuple[tuple[bool, bool], ...]
Part = Mapping[str, Edges]
_NO_EDGES: Edges = ((False, False),)


@dataclass(frozen=True)
class _Line:
    """A line of a list.

    Attributes:
        harmless: Whether the line begins with `!`.
        innocent: Whether it begins with `!!`.
        parts: For each part, its literals (texts to match); each literal with pairs that say whether it needs an edge
            before it and after it.
        ends: For each phrase of the line (`&` joins phrases), the number of parts up to its end.
    """

    harmless: bool
    innocent: bool
    parts: list[Part]
    ends: list[int]

    @classmethod
    def read(cls, line: str) -> _Line:
        """Read a line.

        Raises:
            SafetyError: The line cannot be read.
        """
        phrases = [_parts(phrase.strip()) for phrase in line.lstrip("!").split("&")]
        if line.startswith("!") and len(phrases) > 1:
            raise SafetyError(f"The harmless phrase {line!r} has a &; write two lines.")
        parts = []
        parts = [part for phrase in phrases for part in phrase]
        return cls(line.startswith("!"), line.startswith("!!"), parts, list(accumulate(map(len, phrases))))

    def spans(self, part: Part, literals: Mapping[str, Sequence[int]], separators: bytes) -> list[Span]:
        """Return the spans of a part, given the ends of all literals in the text."""
        spans: list[Span] = []
        for literal in sorted(part.keys() & literals.keys()):
            size = len(literal)
            if (False, False) in part[literal]:  # needs no edges: the spans of a long text are not examined one by one
                spans += [(end - size, end) for end in literals[literal]]
                continue
            spans += [
                (end - size, end)
                for end in literals[literal]
                if any(
                    (not begins or separators[end - size] > NONE) and (not ends or separators[end] > NONE)
                    for begins, ends in part[literal]
                )
            ]
        return spans


class Phrases:
    """List of phrases that are matched in one pass (Aho and Corasick 1975), in all spellings of a text.

    Lines and texts are folded (`chatbot.safety.folding`). In a line

    * `(a|b|)` matches a, b or no letter;
    * `*` matches at most `GAP` letters of the same sentence, or `LATIN_GAP` Latin letters;
    * `^` before and `$` after a part or alternative match an edge: punctuation, a space or the end of the text;
    * `a & b` needs both phrases, anywhere in the text;
    * `!` at the beginning marks a harmless phrase: other phrases inside it do not count, phrases beside it do. In it, `*`
      matches only letters of the same clause, and never 我, 想 or 要. A harmless phrase that crosses the end of a
      clause must end where the next clause ends: 死海 in 我要去死，海子 does not match;
    * `!!` marks a harmless phrase that the classifier does not see either.

    A phrase can cross the end of a clause only if it contains one of the two clauses: 自。杀 matches, 他来自。杀了鸡
    does not. A phrase that begins or ends with a Latin letter or digit matches whole words only: no Latin letter or
    digit may be next to that end.

    Args:
        lines: The phrases.
        spares_titles: Whether a phrase within a title (a longer text in 《》) is harmless.

    Raises:
        SafetyError: A line cannot be read.
    """

    def __init__(self, lines: Sequence[str], spares_titles: bool = False):
        self.lines = tuple(lines)
        self._spares_titles = spares_titles
        self._lines = [_Line.read(line) for line in self.lines]
        self.words = words_of(self.lines)
        self._triggered: defaultdict[str, list[int]] = defaultdict(list)  # lines to try where this literal is found
        literals = {text for line in self._lines for part in line.parts for text in part}
        for number, line in enumerate(self._lines):
            for text in max(line.parts, key=lambda part: min(map(len, part))):
                self._triggered[text].append(number)
        self._longest = max(map(len, literals), default=0)
        self._automaton = ahocorasick.Automaton()
        for text in literals:
            is_chinese = not (text[0].isascii() or text[-1].isascii())  # so no Latin word can continue beyond its ends
            self._automaton.add_word(text, (text, len(text), is_chinese))
        if literals:
            self._automaton.make_automaton()

    def __contains__(self, text: str) -> bool:
        """Whether the text contains one of the phrases."""
        return bool(self.places(text, is_one_enough=True))

    def find(self, text: str) -> list[Span]:
        """Return the spans (start, end) of phrases in the original text, without harmless ones."""
        return [(places[0], places[-1] + 1) for places in self.places(text)]

    def places(self, text: str, folded: Folded | None = None, is_one_enough: bool = False) -> list[tuple[int, ...]]:
        """Return, for each phrase in the text, the indices of its letters, without the characters between them.

        Args:
            text: The text.
            folded: `fold(text)`, if the caller has it already.
            is_one_enough: Stop at the first phrase and return only that one; a long text can contain a million phrases.
        """
        if not len(self._automaton):
            return []
        plain = fold(text) if folded is None else folded
        titles = _titles(text, plain) if self._spares_titles else []
        indices = {plain.places[start:end]: None for start, end in self._hits(plain, titles, is_one_enough)}
        if is_one_enough and indices:
            return list(indices)
        respelled = plain.respelled(self.words)
        if respelled is not plain:
            titles = _titles(text, respelled) if titles else []
            spans = self._hits(respelled, titles, is_one_enough)
            indices |= {respelled.places[start:end]: None for start, end in spans}
        return list(indices)

    def _hits(self, folded: Folded, titles: Sequence[Span], is_one_enough: bool = False) -> list[Span]:
        """Return the spans of phrases in the folded text, without harmless ones; only one if `is_one_enough`."""
        ends, ends_inside = self._literals(folded)
        joiner = Joiner(folded)
        hits = list(self._spans_of_lines(joiner, ends, lambda line: not line.harmless))
        if not hits:
            return []
        harmless = self._spans_of_lines(joiner, _whole_clauses(ends, ends_inside), lambda line: line.harmless)
        in_harmless = Cover([span for spans in harmless for span in spans[0]])
        in_title = Cover(titles)

        def counts(span: Span) -> bool:
            return not in_harmless.holds(span) and not in_title.holds_more_than(span)

        if is_one_enough:
            firsts = ([next(filter(counts, spans), None) for spans in phrases] for phrases in hits)
            return next(([phrases[0]] for phrases in firsts if phrases[0] and all(phrases)), [])
        left = [[list(filter(counts, spans)) for spans in phrases] for phrases in hits]
        return [span for phrases in left if all(phrases) for span in phrases[0]]

    def without_innocent(self, folded: Folded) -> Folded:
        """Return the folded text without the phrases of `!!` lines; the letter after each of them begins a clause."""
        if not any(line.innocent for line in self._lines):
            return folded
        ends = _whole_clauses(*self._literals(folded))
        lines = self._spans_of_lines(Joiner(folded), ends, lambda line: line.innocent)
        cover = Cover([span for spans in lines for span in spans[0]])
        left = [index for index in range(len(folded.text)) if not cover.holds((index, index + 1))]
        if len(left) == len(folded.text):
            return folded
        breaks = [
            folded.breaks[index] if last == index - 1 else max(CLAUSE if last >= 0 else SENTENCE, folded.breaks[index])
            for last, index in pairwise([-1, *left])
        ]
        text = "".join(folded.text[index] for index in left)
        return Folded(text, tuple(folded.places[index] for index in left), (*breaks, SENTENCE))

    def _literals(self, folded: Folded) -> tuple[dict[str, list[int]], dict[str, set[int]]]:
        """Return the ends of all literals in a folded text, and those that are inside another clause."""
        ends: defaultdict[str, list[int]] = defaultdict(list)
        ends_inside: defaultdict[str, set[int]] = defaultdict(set)
        text, separators = folded.text, bytes(folded.breaks)
        for last, (literal, size, is_chinese) in _matches(self._automaton, text, self._longest):
            end = last + 1
            is_whole = size == 1 or separators.count(NONE, end - size + 1, end) == size - 1
            if (is_chinese and is_whole) or _is_apart(folded, (end - size, end)):
                ends[literal].append(end)
                if not is_whole and _ends_inside_a_clause(end - size, end, separators):
                    ends_inside[literal].add(end)
        return ends, ends_inside

    def _spans_of_lines(
        self, joiner: Joiner, ends: Mapping[str, Sequence[int]], is_wanted: Callable[[_Line], bool]
    ) -> Iterator[list[Sequence[Span]]]:
        """Yield, for each wanted line whose phrases all occur in the text, the spans of each of its phrases."""
        separators = bytes(joiner.folded.breaks)
        for number in sorted({number for literal in ends for number in self._triggered.get(literal, ())}):
            line = self._lines[number]
            if not is_wanted(line) or any(ends.keys().isdisjoint(part.keys()) for part in line.parts):
                continue
            parts = [line.spans(part, ends, separators) for part in line.parts]
            spans = [joiner.joined(parts[start:end], line.harmless) for start, end in pairwise([0, *line.ends])]
            if all(spans):
                yield spans


def words_of(lines: Iterable[str]) -> dict[str, str]:
    """Return the Latin words of the lines by their skeletons; if several share a skeleton, the first of them."""
    words: dict[str, str] = {}
    for word in _LATIN.findall("\n".join(lines).lower()):
        words.setdefault(skeleton(word), word)
    return words


def _whole_clauses(ends: Mapping[str, Sequence[int]], ends_inside: Mapping[str, set[int]]) -> dict[str, list[int]]:
    """Return the ends of literals without those that are inside another clause; only the others hide phrases."""
    return {
        literal: [end for end in known if end not in ends_inside.get(literal, ())] for literal, known in ends.items()
    }


def _matches(automaton: ahocorasick.Automaton, text: str, longest: int) -> Iterator[tuple[int, tuple[str, int, bool]]]:
    """Yield the last index of each match, and the literal, its length, and whether both of its ends are Chinese.

    The text is searched in pieces that take about a millisecond, because a search holds Python's global lock. Each
    piece is a new search that begins `longest - 1` letters early. To continue a search with `set` would corrupt the
    memory if two pieces have characters of different widths (pyahocorasick 2.3.1).

    Args:
        automaton: The literals.
        text: The folded text.
        longest: Number of letters of the longest literal.
    """
    for start in range(0, len(text), PIECE_LETTERS):
        begin = max(0, start - longest + 1)
        for last, literal in automaton.iter(text[begin : start + PIECE_LETTERS]):
            if begin + last >= start:
                yield begin + last, literal


def _ends_inside_a_clause(start: int, end: int, separators: bytes) -> bool:
    """Whether a span crosses the end of a clause and ends before the next one does."""
    return max(separators[start + 1 : end], default=NONE) >= CLAUSE > separators[end]


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
    inner = [index for index in range(start + 1, end) if breaks[index] != NONE]
    if is_latin(text[start]) and start and breaks[start] == NONE and is_latin(text[start - 1]):
        return False
    if is_latin(text[end - 1]) and end < len(text) and breaks[end] == NONE and is_latin(text[end]):
        return False
    if inner and end - start < SPELLED_OUT and all(map(is_latin, text[start:end])):
        return False
    for index in inner:
        if breaks[index] >= CLAUSE:
            before = next(at for at in range(index - 1, -1, -1) if breaks[at] >= CLAUSE)
            after = next(at for at in range(index + 1, len(breaks)) if breaks[at] >= CLAUSE)
            if before < start and after > end:
                return False
    return True


def _parts(line: str) -> list[Part]:
    """Return the possible literals of each part of a line, with the pairs that `_Line` describes."""
    parts: list[Part] = []
    for part in line.split("*"):
        texts = _readings(part, line)
        if "^" in part or "$" in part:
            edges: defaultdict[str, set[tuple[bool, bool]]] = defaultdict(set)
            for text in texts:
                edges[text.strip("^$")].add((text.startswith("^"), text.endswith("$")))
            literals = {text: tuple(sorted(pairs)) for text, pairs in edges.items()}
        else:
            literals = dict.fromkeys(texts, _NO_EDGES)
        if any(not text or "^" in text or "$" in text for text in literals):
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

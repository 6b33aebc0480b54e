"""Folding: one spelling for the many ways to write a sentence, with the positions of the original characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from chatbot.safety.characters import LOOKALIKES, MOST_LETTERS, is_respelled, skeleton, unescaped

NONE, SPACE, CLAUSE, SENTENCE = range(4)
"""Kinds of separators between two letters: none; a space, symbol or emoji; the end of a clause or of a sentence."""

_CLAUSE, _SENTENCE = frozenset("，,、：:；;"), frozenset("。！？!?…\n\r\u2028\u2029")
_SAME = {
    **dict(zip("妳您喫著牠祂佢卟萿洅", "你你吃着它他他不活再", strict=True)),
    **dict(zip("唔冇嘅咗哋喺攰瞓嚟畀睇", "不没的了们在累睡来给看", strict=True)),
}
"""Variants that OpenCC does not unify, rare characters in place of common ones (卟想萿), and Cantonese words with one
counterpart in written Chinese."""
_INVISIBLE = frozenset("\u115f\u1160")
"""Letters that have no shape: the Hangul fillers, after NFKD."""
_MAX_LETTERS = 4
"""Maximum number of letters that a folded character becomes. NFKD makes 18 of U+FDFA."""
FILLER = 4
"""Between two Chinese characters at most this many letters of other scripts, digits and `STROKES` are removed."""
STROKES = "〇丶々ー啊呃嗯哦噢喔唉哎呀哟"
"""Characters that are removed like letters of other scripts: strokes, and interjections (我想啊死)."""
REPEATED = 3
"""A letter that occurs this many times or more in a row counts once."""
BULK_CHARACTERS = 64
"""Longer texts are folded in bulk, which is six times as fast; the overhead is that of about 50 characters."""
_MAX_KNOWN = 1 << 16
_PRIVATE, _SEVERAL, _DOT = 0xE000, 4, re.compile(r"\.")
_CHINESE = "[\u3400-\u9fff\U00020000-\U0003ffff]"
_REPEATED = re.compile(r"(.)\1\1")
_FILLED = re.compile(
    f"(?![{STROKES}]){_CHINESE}(?:{_CHINESE.replace('[', '[^')}|[{STROKES}])+{_CHINESE}|{_REPEATED.pattern}"
)
_WORD = re.compile("[a-z0-9]+")


@dataclass(frozen=True)
class Folded:
    """A text without its separators.

    Attributes:
        text: Letters and digits: compatibility forms and marks resolved (NFKD), simplified, in lower case.
        places: For each letter, the index of its original character.
        breaks: Separator before each character, and after the last one: `NONE`, `SPACE`, `CLAUSE` or `SENTENCE`. Both
            ends of the text are ends of a sentence.
    """

    text: str
    places: tuple[int, ...]
    breaks: tuple[int, ...]

    def respelled(self, words: Mapping[str, str]) -> Folded:
        """Return the text with the listed words in place of disguised Latin ones, without fillers and repetitions.

        A word that has digits (su1c1de) or a letter three times in a row (killll) becomes the listed word with its
        skeleton. A letter three times in a row or more remains once. A filler is a run of at most `FILLER` letters of
        other scripts, digits and `STROKES` between two Chinese characters (自x杀, 自1杀, 自の杀).

        Args:
            words: Words by their skeletons, see `chatbot.safety.characters.skeleton`.
        """
        known = self._with_words(words) if is_respelled(self.text) else self
        return known._condensed if _FILLED.search(known.text) else known

    def _with_words(self, words: Mapping[str, str]) -> Folded:
        """Return the text with the listed words in place of those that are spelled with digits or repeated letters."""
        letters: list[str] = []
        places: list[int] = []
        breaks: list[int] = []
        at = 0
        for start, end in self._latin_words():
            word = self.text[start:end]
            listed = words.get(skeleton(word), word) if end - start <= MOST_LETTERS and is_respelled(word) else word
            if listed == word:
                continue
            last = end - start - 1
            inside = [start + min(index, last) for index in range(len(listed))]
            inside[-1] = end - 1
            letters += self.text[at:start], listed
            places += [*self.places[at:start], *(self.places[index] for index in inside)]
            breaks += [*self.breaks[at : start + 1], *[NONE] * (len(listed) - 1)]
            at = end
        if not at:
            return self
        return Folded("".join([*letters, self.text[at:]]), (*places, *self.places[at:]), (*breaks, *self.breaks[at:]))

    def _latin_words(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of each run of Latin letters and digits without a separator."""
        for match in _WORD.finditer(self.text):
            start = match.start()
            for index in range(start + 1, match.end()):
                if self.breaks[index] != NONE:
                    yield start, index
                    start = index
            yield start, match.end()

    @cached_property
    def _condensed(self) -> Folded:
        """Return the text without fillers, and with one letter for a letter three times or more in a row."""
        text, size = self.text, len(self.text)
        once: Sequence[int] = self._once() if _REPEATED.search(text) else range(size)
        indices: list[int] = []
        start, count = 0, len(once)
        while start < count:
            end = start
            while end < count and _is_filler(text[once[end]]):
                end += 1
            is_inside = 0 < start < end < count and end - start <= FILLER
            if not (is_inside and is_chinese(text[once[start - 1]]) and is_chinese(text[once[end]])):
                indices += once[start:end]
            if end < count:
                indices.append(once[end])
            start = end + 1
        if len(indices) == size:
            return self
        starts = np.concatenate(([0], np.array(indices) + 1))  # an index takes over the separators from here to itself
        breaks = np.maximum.reduceat(np.array(self.breaks), starts).tolist()
        places = np.array(self.places)[indices].tolist()
        return Folded("".join([text[index] for index in indices]), tuple(places), tuple(breaks))

    def _once(self) -> list[int]:
        """Return the indices of all letters, but only the first of those that are in a row `REPEATED` times or more."""
        indices: list[int] = []
        start, size = 0, len(self.text)
        while start < size:
            end = start + 1
            while end < size and self.text[end] == self.text[start] and self.breaks[end] == NONE:
                end += 1
            indices += range(start, end if end - start < REPEATED else start + 1)
            start = end
        return indices


def fold(text: str) -> Folded:
    """Fold a text for matching.

    Separators, underscores, emoji and characters of zero width are removed; full-width letters and Kangxi radicals
    become ordinary characters, traditional characters simplified ones, capitals lower case, and characters that look
    like Latin letters those letters. An escape (`chatbot.safety.characters.unescaped`) counts as its character.

    >>> fold("我想自_殺").text
    '我想自杀'
    """
    if (plain := unescaped(text)) is None:
        return _fold_plain(text)
    folded, places = _fold_plain(plain[0]), plain[1]
    return Folded(folded.text, tuple(places[index] for index in folded.places), folded.breaks)


def _fold_plain(text: str) -> Folded:
    return fold_in_bulk(text) if len(text) >= BULK_CHARACTERS else fold_each(text)


def fold_each(text: str) -> Folded:
    """Fold a text character by character."""
    letters, places, breaks, between = [], [], [], SENTENCE
    for index, character in enumerate(text):
        if character == "." and _is_inside_a_word(text, index):
            between = max(between, SPACE)  # s.u.i.c.i.d.e
            continue
        folded, kind = fold_character(character)
        between = max(between, kind)
        for letter in folded:
            letters.append(letter)
            places.append(index)
            breaks.append(between)
            between = NONE
    return Folded("".join(letters), tuple(places), (*breaks, SENTENCE))


def fold_in_bulk(text: str) -> Folded:
    """Fold a text by NumPy operations on all characters at once; the result is that of `fold_each`."""
    codes = np.frombuffer(text.translate(_BULK).encode("utf-32-le"), np.uint32)
    kinds = codes - _PRIVATE  # of a letter, more than `_SEVERAL`
    is_letter = kinds > _SEVERAL
    if (kinds == _SEVERAL).any():
        return fold_each(text)
    places = np.flatnonzero(is_letter)
    if not len(places):
        return Folded("", (), (SENTENCE,))
    strengths = np.where(is_letter, NONE, kinds)
    strengths[[match.start() for match in _DOT.finditer(text) if _is_inside_a_word(text, match.start())]] = SPACE
    after = np.maximum.reduceat(strengths, places)  # from each letter to the next one
    letters = codes[places].tobytes().decode("utf-32-le")
    return Folded(letters, tuple(places.tolist()), (SENTENCE, *after[:-1].tolist(), SENTENCE))


def _is_inside_a_word(text: str, index: int) -> bool:
    """Whether a dot is between two letters or digits, as in s.u.i.c.i.d.e."""
    return 0 < index < len(text) - 1 and (text[index - 1] + text[index + 1]).isalnum()


class _Bulk(dict[int, int]):
    """For each code point its folded letter, or `_PRIVATE` plus a kind of separator, or `_PRIVATE` plus `_SEVERAL`.

    Private characters are separators, so no text folds to one.
    """

    def __missing__(self, code: int) -> int:
        folded, kind = fold_character(chr(code))
        if len(self) >= _MAX_KNOWN:
            self.clear()
        self[code] = value = ord(folded) if len(folded) == 1 else _PRIVATE + (_SEVERAL if folded else kind)
        return value


_BULK = _Bulk()


@lru_cache(_MAX_KNOWN)
def fold_character(character: str) -> tuple[str, int]:
    """Return the letters to which a character is folded, and the kind of separator that it counts as."""
    if character in _SENTENCE or character == ".":
        return "", SENTENCE
    if character in _CLAUSE:
        return "", CLAUSE
    letters = []
    parts = unicodedata.normalize("NFKD", character)
    if len(parts) > _MAX_LETTERS:
        return "", SPACE
    for part in parts:
        category = unicodedata.category(part)
        if part in _INVISIBLE:
            continue
        if category[0] in "LN":
            lower = _simplified(part).lower()
            letters.append(LOOKALIKES.get(lower, lower))
        elif part in LOOKALIKES:
            letters.append(LOOKALIKES[part])
        elif category[0] != "M" and category != "Cf":
            letters.append(" ")
    folded = "".join(letters).replace(" ", "")
    return folded, SPACE if letters and not folded else NONE


def is_chinese(letter: str) -> bool:
    """Whether a folded letter is a Chinese character."""
    return "\u3400" <= letter <= "\u9fff" or "\U00020000" <= letter <= "\U0003ffff"


def is_latin(letter: str) -> bool:
    """Whether a folded letter is a Latin letter or a digit."""
    return letter.isascii()


def _is_filler(letter: str) -> bool:
    return not is_chinese(letter) or letter in STROKES


def _simplified(letter: str) -> str:
    if letter in _SAME:
        return _SAME[letter]
    return _converter().convert(letter) if is_chinese(letter) else letter


@lru_cache(1)
def _converter() -> Any:
    import opencc  # imported when a text is folded, so that --help answers quickly

    return opencc.OpenCC("t2s")

"""Banned words in all spellings, and the safety rules as tables, for the C runtime (chatbot/native/runtime/safety.c)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from chatbot.checkpoint.export.blocks import array_block, numbers_block, text_block
from chatbot.decoding.rules.banned_words import spellings
from chatbot.errors import CheckpointError
from chatbot.safety import Safety, characters, classifier, folding, phrases, rules, spans
from chatbot.safety.care import ASKING, KINDS
from chatbot.safety.folding import fold_character
from chatbot.safety.phrases import Phrases, choices_of
from chatbot.safety.words import split_words

IDENTITY, SEPARATOR, SHIFTED, POOL, ALNUM = 0, 1, 2, 3, 256
"""Codes that say how a range of characters is folded: unchanged, to a separator, by adding an offset, or to letters of
the pool. A flag marks alphanumeric characters."""

SAME_PLANES = range(0x40000, 0x110000)
"""Unicode planes whose characters all fold in the same way: no character in them has a meaning, except the tags."""

LIMITS = (
    *(spans.GAP, spans.LATIN_GAP, phrases.SPELLED_OUT),
    *(folding.FILLER, folding.REPEATED, characters.MOST_LETTERS),
    *(classifier.SHORT_LETTERS, classifier.LONG_LETTERS, classifier.FEWEST_LETTERS, classifier.MOST_LETTERS),
    *(classifier.FEW_PARTS, classifier.SIDE_LETTERS, rules.JOINED_MESSAGES, rules.JOINED_CHARACTERS),
    rules.TAIL_LETTERS,
)
"""Numbers of the rules, in the order of chatbot/native/runtime/safety.c."""


def spelled_words(words: Sequence[str]) -> list[str]:
    """Return the spellings of banned words in lower case, and of their exceptions with a `!`.

    Raises:
        CheckpointError: A word has a line break.
    """
    banned, exceptions = (
        [form.decode() for form in spellings(part, spaced=True)] for part in split_words(tuple(dict.fromkeys(words)))
    )
    if any("\n" in word for word in (*banned, *exceptions)):
        raise CheckpointError("A banned word has a line break, which the lite runtime cannot ban. Remove the word.")
    return [*banned, *(f"!{exception}" for exception in exceptions)]


def safety_bytes(safety: Safety) -> bytes:
    """Return safety rules as the runtime reads them.

    Raises:
        CheckpointError: The rules replace words in messages, which the runtime does not support.
    """
    if safety.mode == "replace" and safety.words_in.lines:
        raise CheckpointError("The lite runtime cannot replace words in messages. Set words_in to refuse or off.")
    entries, pool = fold_table()
    parts = [array_block(np.array(entries, "<i4")), array_block(np.array(pool, "<i4")), numbers_block(*LIMITS)]
    stands_for = "".join(map(chr, range(128))).translate(characters.STANDS_FOR)
    symbols, digits = map("".join, zip(*(characters.SYMBOLS | characters.PICTURES).items(), strict=True))
    parts += map(_letters, (folding.STROKES, "".join(sorted(spans.SPEAKING)), symbols, digits, stands_for))
    for lines in (safety.crisis, safety.certain, *(safety.care.phrases[kind] for kind in ASKING), safety.words_in):
        parts.append(_phrases(lines))
    parts.append(numbers_block(safety.mode == "refuse", safety.care.ordinary_messages, safety.care.ordinary_letters))
    parts += [text_block(safety.crisis_reply), text_block(safety.refusal)]
    for kind in KINDS:
        replies = safety.care.replies[kind]
        parts += [numbers_block(len(replies)), *map(text_block, replies)]
    model = safety.classifier
    parts.append(numbers_block(model is not None))
    numbers = (0.0,) * 4 if model is None else (model.scale, model.bias, model.threshold, model.veto)
    parts.append(struct.pack("<5d", *numbers, classifier.PER_DOUBLING))
    parts.append(array_block(classifier.MULTIPLIERS.astype("<u4")))
    parts.append(array_block(np.zeros(0, np.int8) if model is None else model.weights.astype(np.int8)))
    return b"".join(parts)


@lru_cache(1)
def fold_table() -> tuple[list[tuple[int, int, int]], list[int]]:
    """Return (first character, kind, value) of each range of characters that fold alike, and the pool of letters."""
    entries: list[tuple[int, int, int]] = []
    pool: list[int] = []
    for point in range(0x110000):
        if point in SAME_PLANES and not 0xE0000 <= point < 0xE0200 and point not in (SAME_PLANES[0], 0xE0200, 0xF0000):
            continue
        character = "\ufffd" if 0xD800 <= point < 0xE000 else chr(point)
        letters, separator = fold_character(character)
        kind, value = SEPARATOR, separator
        if letters == character:
            kind, value = IDENTITY, 0
        elif len(letters) == 1:
            kind, value = SHIFTED, ord(letters) - point
        elif letters:
            kind, value = POOL + len(letters), len(pool)
            pool += map(ord, letters)
        kind |= ALNUM * character.isalnum()
        if not entries or entries[-1][1:] != (kind, value):
            entries.append((point, kind, value))
    return entries, pool


def _phrases(lines: Phrases) -> bytes:
    """Return the lines of a list, and its Latin words after their skeletons.

    A line is 1 if it is harmless, 2 if it begins with `!!`, else 0; the number of its phrases and of its parts; the last
    part of each phrase; and the parts.
    """
    content = [numbers_block(len(lines.lines))]
    for line in lines.lines:
        split = [phrase.strip().split("*") for phrase in line.lstrip("!").split("&")]
        ends = [sum(map(len, split[: index + 1])) for index in range(len(split))]
        content.append(numbers_block(line.startswith("!") + line.startswith("!!"), len(split), ends[-1], *ends))
        for part in (part for phrase in split for part in phrase):
            choices = choices_of(part, line)
            content.append(numbers_block(len(choices)))
            for alternatives in choices:
                content += [numbers_block(len(alternatives)), *map(_letters, alternatives)]
    content.append(numbers_block(len(lines.words)))
    content += (_letters(text) for entry in sorted(lines.words.items()) for text in entry)
    return b"".join(content)


def _letters(text: str) -> bytes:
    return array_block(np.array(list(map(ord, text)), "<i4"))

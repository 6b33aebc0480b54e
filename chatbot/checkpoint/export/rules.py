"""Banned words in all spellings, and the safety rules as tables, for the C runtime (chatbot/native/runtime/safety.c)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from chatbot.decoding.rules.banned_words import spellings
from chatbot.errors import CheckpointError
from chatbot.safety import Safety
from chatbot.safety.folding import fold_character
from chatbot.safety.phrases import Phrases, choices_of
from chatbot.safety.rules import ASKING, KINDS
from chatbot.safety.words import split_words

IDENTITY, SEPARATOR, SHIFTED, POOL, ALNUM = 0, 1, 2, 3, 256
"""Codes for how a range of characters is folded: to itself, to a separator, by adding a distance, to letters of the pool;
and a flag: alphanumeric."""

SAME_PLANES = range(0x40000, 0x110000)
"""Planes whose characters all fold in the same way, because no character in them except the tags has a meaning."""


def spelled_words(words: Sequence[str]) -> list[str]:
    """Return the spellings of banned words in lower case, and of their exceptions with a `!`.

    Raises:
        CheckpointError: A word has a line break.
    """
    banned, exceptions = (
        [form.decode() for form in spellings(part, spaced=True)] for part in split_words(tuple(dict.fromkeys(words)))
    )
    if any("\n" in word for word in (*banned, *exceptions)):
        raise CheckpointError("A banned word has a line break, which the lite runtime does not have. Remove the word.")
    return [*banned, *(f"!{exception}" for exception in exceptions)]


def safety_bytes(safety: Safety) -> bytes:
    """Return safety rules as the runtime reads them.

    Raises:
        CheckpointError: The rules replace words of messages, which the runtime does not.
    """
    if safety.mode == "replace" and safety.words_in.lines:
        raise CheckpointError("The lite runtime cannot replace words in messages. Set words_in to refuse or off.")
    entries, pool = fold_table()
    parts = [_array(np.array(entries, "<i4")), _array(np.array(pool, "<i4"))]
    for phrases in (safety.crisis, *(safety.care.phrases[kind] for kind in ASKING), safety.words_in):
        parts.append(_phrases(phrases))
    parts.append(_numbers(safety.mode == "refuse", safety.care.ordinary_messages, safety.care.ordinary_letters))
    parts += [_text(safety.crisis_reply), _text(safety.refusal)]
    for kind in KINDS:
        replies = safety.care.replies[kind]
        parts += [_numbers(len(replies)), *map(_text, replies)]
    found = safety.classifier
    parts.append(_numbers(found is not None))
    numbers = (0.0,) * 4 if found is None else (found.scale, found.bias, found.threshold, found.veto)
    parts.append(struct.pack("<4d", *numbers))
    parts.append(_array(np.zeros(0, np.int8) if found is None else found.weights.astype(np.int8)))
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


def _phrases(phrases: Phrases) -> bytes:
    """Return the lines of a list: harmless, number of phrases and parts, last part of each phrase, and the parts."""
    content = [_numbers(len(phrases.lines))]
    for line in phrases.lines:
        split = [phrase.strip().split("*") for phrase in line.removeprefix("!").split("&")]
        ends = [sum(map(len, split[: index + 1])) for index in range(len(split))]
        content.append(_numbers(line.startswith("!"), len(split), ends[-1], *ends))
        for part in (part for phrase in split for part in phrase):
            choices = choices_of(part, line)
            content.append(_numbers(len(choices)))
            for alternatives in choices:
                letters = [np.array(list(map(ord, text)), "<i4") for text in alternatives]
                content += [_numbers(len(letters)), *map(_array, letters)]
    return b"".join(content)


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def _text(text: str) -> bytes:
    return _array(np.frombuffer(text.encode(), np.uint8))


def _array(array: np.ndarray) -> bytes:
    """Return the size of an array in bytes, and the array, padded to a multiple of four bytes."""
    content = array.tobytes()
    return _numbers(len(content)) + content + bytes(-len(content) % 4)

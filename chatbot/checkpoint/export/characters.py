"""Character classes that tokenizers use to split a text.

They are read from the package tokenizers, because its Unicode tables differ from Python's.
"""

from __future__ import annotations

from functools import lru_cache

from tokenizers.pre_tokenizers import PreTokenizer

from chatbot.errors import CheckpointError
from chatbot.text.tokenizer import DialogueTokenizer
from chatbot.text.tokenizer_training import SPLIT, pre_tokenizer

HAN, LETTER, NUMBER, SPACE, OTHER = 1, 2, 4, 8, 16
"""Classes of characters: the kinds of pieces that a character can continue, with the numbers of
chatbot/native/runtime/text.c."""

PROBES = ("一", "a", "!")
"""A character of each class HAN, LETTER and OTHER. A character that joins its piece belongs to this class."""

BLOCK = 4096
UNIFORM = ((0xD800, 0xE000), (0x40000, 0xE0000), (0xE1000, 0x110000))
"""Surrogates, planes without characters, and private planes: one class each."""


def character_classes(tokenizer: DialogueTokenizer) -> list[tuple[int, int]]:
    """Return (first code point, classes) of each run of code points with the same classes.

    Raises:
        CheckpointError: The tokenizer splits by another pattern than ours.
    """
    content = tokenizer.content()
    split = content["pre_tokenizer"]
    if content["normalizer"] is not None or split != SPLIT or content["model"]["type"] != "BPE":
        raise CheckpointError(
            "The tokenizer is not of the kind that xianliao-prepare makes. Export another checkpoint."
        )
    return _runs_of_classes()


@lru_cache(1)
def _runs_of_classes() -> list[tuple[int, int]]:
    """Return the result of `character_classes`, which is the same for all tokenizers that split by `SPLIT`."""
    splitter = pre_tokenizer()
    runs: list[tuple[int, int]] = []
    point = 0
    while point < 0x110000:
        skip = next((end for start, end in UNIFORM if start <= point < end), None)
        end = min([start for start, _ in UNIFORM if start > point] + [point + BLOCK, 0x110000])
        classes = [OTHER] if skip else _classes(splitter, point, end)
        for number, kinds in enumerate(classes):
            if not runs or runs[-1][1] != kinds:
                runs.append((point + number, kinds))
        point = skip or end
    return runs


def _classes(splitter: PreTokenizer, start: int, end: int) -> list[int]:
    """Return the classes of the code points from `start` to `end`: each is tested after characters of known classes."""
    units = [[probe + chr(point) for probe in PROBES] + [chr(point) * 2] for point in range(start, end)]
    text = "".join("".join(unit) for unit in units)
    begins = {first for _, (first, _) in splitter.pre_tokenize_str(text)}
    classes = []
    for number in range(end - start):
        joined = [8 * number + 2 * index + 1 not in begins for index in range(4)]
        kinds = HAN * joined[0] | LETTER * joined[1] | OTHER * joined[2]
        classes.append(kinds or (SPACE if joined[3] else NUMBER))
    return classes

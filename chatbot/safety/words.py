"""Lists of banned words and their exceptions."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the banned words of a list, and its exceptions without their `!`; the entry `!` alone is a banned word."""
    exceptions = [word[1:] for word in words if _is_exception(word)]
    return [word for word in words if not _is_exception(word)], exceptions


def lost_exceptions(words: Sequence[str]) -> list[str]:
    """Return the exceptions that can have no effect: they do not end with a shorter banned word.

    A reply is written from left to right, so only text before a word can make it harmless: 妈妈的 is an exception of
    妈的, but 他妈妈 cannot be one of 他妈.
    """
    banned, exceptions = split_words(words)
    folded = {word.lower() for word in banned}
    sizes = sorted({len(word) for word in folded})
    return [f"!{exception}" for exception in exceptions if not _has_ending(exception.lower(), folded, sizes)]


def _has_ending(exception: str, words: Collection[str], sizes: Sequence[int]) -> bool:
    """Whether an exception ends with one of the words and is longer."""
    return any(exception[len(exception) - size :] in words for size in sizes if size < len(exception))


def _is_exception(word: str) -> bool:
    return word.startswith("!") and bool(word.strip("!"))

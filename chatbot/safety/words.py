"""Lists of words that no reply has, and their exceptions."""

from __future__ import annotations

from collections.abc import Sequence


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The banned words of a list, and its exceptions without their `!`; an entry of `!` alone is a word."""
    exceptions = [word[1:] for word in words if _is_exception(word)]
    return [word for word in words if not _is_exception(word)], exceptions


def lost_exceptions(words: Sequence[str]) -> list[str]:
    """Exceptions that are not longer than a banned word and end with it, as they must.

    A reply is written from left to right, so only what stands before a word can make it harmless: 妈妈的 is an exception
    of 妈的, but 他妈妈 cannot be one of 他妈.
    """
    banned, exceptions = split_words(words)
    folded = [word.lower() for word in banned]
    return [
        f"!{each}" for each in exceptions if not any(each.lower().endswith(w) and len(w) < len(each) for w in folded)
    ]


def _is_exception(word: str) -> bool:
    return word.startswith("!") and bool(word.strip("!"))

"""Rules for the C runtime: banned words in all spellings, and the safety rules as tables."""

from __future__ import annotations

from collections.abc import Sequence

from chatbot.decoding.rules.banned_words import spellings
from chatbot.errors import CheckpointError
from chatbot.safety import Safety
from chatbot.safety.words import split_words


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
    return b""

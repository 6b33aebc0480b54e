"""Checks of the settings that are lists: banned words and biases of tokens. Needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from chatbot.errors import ReplySettingsError, shown
from chatbot.safety.words import lost_exceptions
from chatbot.text.dialogue import valid_text

MAX_BIAS = 100
"""Largest absolute value of a bias."""


MAX_WORDS, MAX_EXCEPTIONS, MAX_WORD_CHARACTERS = 20_000, 500, 100
"""Limits of a list of banned words, which may come from an untrusted checkpoint: the memory of the search trees grows
with the square of the word length, and each exception is compared with each word."""


def checked_words(words: object) -> tuple[str, ...]:
    """Return banned words and their exceptions without outer spaces.

    Raises:
        ReplySettingsError: The value is not a list of usable words.
    """
    if not isinstance(words, Sequence) or isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise ReplySettingsError(f"Decoding: banned_words must be a list of words, got {shown(words)}.")
    return _checked(tuple(words))


@lru_cache(8)
def _checked(words: tuple[str, ...]) -> tuple[str, ...]:
    """Check a list; the result is cached, so that a list is not checked again for every request."""
    if not all(map(_is_word, words)):
        raise ReplySettingsError(f"Decoding: banned_words must be a list of words, got {shown(words)}.")
    longest, exceptions = max(map(len, words), default=0), sum(word.startswith("!") for word in words)
    if len(words) > MAX_WORDS or exceptions > MAX_EXCEPTIONS or longest > MAX_WORD_CHARACTERS:
        raise ReplySettingsError(
            f"Decoding: banned_words may have {MAX_WORDS:,} words of {MAX_WORD_CHARACTERS} characters, {MAX_EXCEPTIONS} of"
            f" them exceptions, got {len(words):,} of up to {longest:,}, {exceptions:,} of them exceptions."
        )
    stripped = tuple(word.strip() for word in words)
    if lost := lost_exceptions(stripped):
        raise ReplySettingsError(
            f"Decoding: the exception {shown(lost[0])} in banned_words does not end with a banned word."
        )
    return stripped


def checked_bias(bias: object) -> tuple[tuple[int, float], ...]:
    """Return a mapping or pairs of token id and nats as sorted pairs; ids may be strings, as in JSON.

    Raises:
        ReplySettingsError: The value is not a mapping of usable ids and numbers.
    """
    try:
        items: Iterable[Any] = bias.items() if isinstance(bias, Mapping) else cast(Iterable[Any], bias)
        distinct = dict(items)  # joins repeated ids first: a client may send one id 300,000 times
        pairs = sorted({int(token): value for token, value in distinct.items()}.items())
    except (TypeError, ValueError):
        raise ReplySettingsError(f"Decoding: logit_bias must map token ids to numbers, got {shown(bias)}.") from None
    for token, value in pairs:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if token < 0 or not is_number or not -MAX_BIAS <= value <= MAX_BIAS:
            raise ReplySettingsError(
                f"Decoding: logit_bias of token {token} must be between -{MAX_BIAS} and {MAX_BIAS}, got {shown(value)}."
            )
    return tuple((token, float(value)) for token, value in pairs)


def _is_word(word: str) -> bool:
    return bool(word.strip()) and valid_text(word) == word

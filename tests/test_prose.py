"""The check of the words finds what it names and leaves plain sentences alone."""

from __future__ import annotations

import pytest

from tests.prose import COMPILED


@pytest.mark.parametrize(
    "text",
    [
        "Of its random numbers.",
        "This is no checkpoint.",
        "Reads what is left of the queue",
        "Whoever reads it waits",
        "at most 120 requests a minute",
        "so that nobody waits",
        "a thread of its own",
        "Removes all that it wrote",
        "where the file stands",
    ],
)
def test_habits_are_found(text):
    assert any(pattern.search(text) for pattern in COMPILED.values())


@pytest.mark.parametrize(
    "text",
    [
        "Return the logits of the next token.",
        "Keep the best tokens of each row, and EOS.",
        "Seconds of a request; of the rest, none.",
        "at most 120 requests per minute",
        "The token is not special, and its id is no longer needed.",
        "What is the layout?",
    ],
)
def test_plain_sentences_pass(text):
    assert not any(pattern.search(text) for pattern in COMPILED.values())

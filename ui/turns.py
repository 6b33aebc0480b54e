"""Bounds on conversations, and messages as turns: page, API and Python share `join_messages`, so the same messages give the
same turns in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatbot.chat.request import shorten
from chatbot.chat.turns import join_messages

__all__ = ["MAX_CHARACTERS", "join_messages", "newest_turns"]

MAX_CHARACTERS = 500_000
"""Longest conversation, in characters of all messages together."""


def newest_turns(turns: Sequence[str], characters: int = MAX_CHARACTERS) -> list[str]:
    """Return the last turns, together at most about `characters` long; a longer last turn keeps its beginning and end."""
    newest = [shorten(turns[-1], characters)]
    left = characters - len(newest[0])
    for turn in reversed(turns[:-1]):
        left -= len(turn)
        if left < 0:
            break
        newest.append(turn)
    return newest[::-1]

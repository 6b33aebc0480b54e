"""Messages of a request as the turns of a conversation. Page and API share these functions, so the same messages give the
same turns in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chatbot.chat.request import shorten

MAX_CHARACTERS = 500_000
"""Longest conversation, in characters of all messages together."""


def join_messages(messages: Iterable[tuple[str, str]], opening: Sequence[str] = ()) -> tuple[list[str], bool]:
    """Return alternating turns, the user's first, made of messages of two roles.

    Consecutive messages of one role become one turn, joined by a newline.

    Args:
        messages: (role, text) pairs with the roles `user` and `assistant`, oldest first.
        opening: Turns before the messages, for example a persona; messages are not joined to them.

    Returns:
        The turns, and whether an assistant message before the first user message was left out.
    """
    parts = [[turn] for turn in opening]
    left_out = False
    for role, text in messages:
        speaker = 0 if role == "user" else 1
        if len(parts) > len(opening) and (len(parts) - 1) % 2 == speaker:
            parts[-1].append(text)
        elif len(parts) % 2 == speaker:
            parts.append([text])
        else:
            left_out = True
    return ["\n".join(part) for part in parts], left_out


def newest_turns(turns: Sequence[str], characters: int = MAX_CHARACTERS) -> list[str]:
    """Return the last turns, together at most about `characters` long; a longer last turn keeps its beginning and end."""
    kept = [shorten(turns[-1], characters)]
    left = characters - len(kept[0])
    for turn in reversed(turns[:-1]):
        left -= len(turn)
        if left < 0:
            break
        kept.append(turn)
    return kept[::-1]

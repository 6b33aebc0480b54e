"""History of a request: messages as turns, and replies cut at stop sequences."""

from __future__ import annotations

from collections.abc import Sequence

from ui.api.schemas import ApiError, Message
from ui.page.chats import add_turn


def to_turns(messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    """The turns of a conversation, the person's first, and what was left out of it.

    Raises:
        ApiError: The last message is not the person's.
    """
    turns: list[str] = []
    left_out = []
    for message in messages:
        if message.role in ("system", "developer"):
            left_out.append(message.role)
        elif not add_turn(turns, message.role, message.text):
            left_out.append("assistant before the first user")
    if not turns:
        raise ApiError(400, "There is no user message to answer.")
    if len(turns) % 2 == 0:
        raise ApiError(400, "The last message must be the user's; there is nothing to answer after an assistant's.")
    return turns, list(dict.fromkeys(left_out))


def until_stop(text: str, stops: Sequence[str], ended: bool) -> tuple[str, bool]:
    """The text before the first stop, and whether there was one; unended, without what may be the beginning of one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if places:
        return text[: min(places)], True
    if not ended:
        begun = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        held = max(begun, default=0)
        text = text[: len(text) - held]
    return text, False

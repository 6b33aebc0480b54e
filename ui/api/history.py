"""Messages of a request as turns, and replies cut at stop sequences."""

from __future__ import annotations

from collections.abc import Sequence

from chatbot.chat.bot import Chatbot
from chatbot.chat.turns import SYSTEM_ROLES
from ui.api.requests import SKIPPED_ROLES, Message
from ui.api.schemas import ApiError
from ui.turns import MAX_CHARACTERS, join_messages, newest_turns


def to_turns(messages: Sequence[Message], takes_system: bool = False) -> tuple[list[str], list[str], str]:
    """Return the turns of a conversation, the user's first; a description of each kind of message that is left out; and
    the system prompt.

    Args:
        messages: The messages.
        takes_system: Whether the model reads a system prompt: the system and developer messages before all others, joined
            by an empty line.

    Raises:
        ApiError: The last message is not the user's.
    """
    dialogue: list[tuple[str, str]] = []
    left_out: list[str] = []
    system: list[str] = []
    for message in messages:
        if takes_system and message.role in SYSTEM_ROLES and message.content is not None and not dialogue:
            system.append(message.content)
        elif message.role in SKIPPED_ROLES:
            left_out.append(message.role)
        elif message.content is None:  # of an assistant; X-Ignored names its tool_calls, too
            left_out.append("assistant without content")
        else:
            dialogue.append((message.role, message.content))
    turns, without_user = join_messages(dialogue)
    if without_user:
        left_out.append("assistant before the first user")
    if not turns:
        raise ApiError(400, "The request has no user message. Send at least one.")
    if len(turns) % 2 == 0:
        raise ApiError(400, "The last message must be the user's: an assistant message needs no answer.")
    return turns, list(dict.fromkeys(left_out)), "\n\n".join(system)


def within_bounds(turns: Sequence[str], bot: Chatbot) -> list[str]:
    """Return the turns of a conversation that is not too long.

    A longer conversation is normally refused. But if its newest `MAX_CHARACTERS` characters get a fixed reply, their
    turns are returned, so that a person in crisis is still answered.

    Raises:
        ApiError: The conversation is too long.
    """
    characters = sum(map(len, turns))
    if characters <= MAX_CHARACTERS:
        return list(turns)
    newest = newest_turns(turns)
    if bot.fixed_answer(newest) is None:
        raise ApiError(
            400,
            f"The messages have {characters} characters together, the limit is {MAX_CHARACTERS}."
            " Leave out the oldest messages.",
        )
    return newest


def until_stop(text: str, stops: Sequence[str], ended: bool) -> tuple[str, bool]:
    """Return the text before the first stop sequence, and whether the text has one.

    Args:
        text: Reply so far.
        stops: Stop sequences.
        ended: Whether the reply is complete. If it is not, an end of the text that may begin a stop sequence is left out.
    """
    positions = [position for stop in stops if (position := text.find(stop)) >= 0]
    if positions:
        return text[: min(positions)], True
    if not ended:
        beginnings = (
            length
            for stop in stops
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        )
        text = text[: len(text) - max(beginnings, default=0)]
    return text, False

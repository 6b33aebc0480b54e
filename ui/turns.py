"""History of a request as turns, within bounds that are checked before any text is tokenized.

Page and API share these functions, so the same messages give the same turns in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chatbot.chat.bot import Chatbot
from chatbot.text.dialogue import DialogueError

MAX_CHARACTERS = 500_000
"""Longest conversation, in characters of all messages together."""

MAX_MESSAGE_CHARACTERS = 100_000
"""Longest message that is tokenized, also for a model with a long context."""

CHARACTERS_PER_TOKEN = 32
"""More characters than a token of ordinary text has: a text of more than 32 n characters has more than n tokens."""


class MessageTooLongError(DialogueError):
    """The message to answer is too long to be tokenized.

    Attributes:
        characters: Length of the message.
        max_tokens: Longest message that the model reads, in tokens.
    """

    def __init__(self, characters: int, max_tokens: int):
        super().__init__(
            f"The message is too long: {characters} characters, at most {max_tokens} tokens are read. Send it in parts."
        )
        self.characters, self.max_tokens = characters, max_tokens


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


def max_message_characters(bot: Chatbot) -> int:
    """Return the length, in characters, above which a message is refused without being tokenized."""
    return min(MAX_MESSAGE_CHARACTERS, CHARACTERS_PER_TOKEN * bot.max_message_tokens)


def bounded_turns(turns: Sequence[str], bot: Chatbot) -> list[str]:
    """Return turns that the bot can read in bounded time and that give the same reply.

    An old turn that overfills the model's context is shortened to a length that overfills it as well. The window that
    the model reads (`chatbot.text.dialogue.fit`) does not depend on how much longer the turn was.

    Args:
        turns: History, oldest turn first; the last turn is the user's.
        bot: Model that will read it.

    Raises:
        MessageTooLongError: The last turn is too long and does not get a fixed reply (`chatbot.safety`).
    """
    overfull = CHARACTERS_PER_TOKEN * bot.context_tokens
    bounded = [shorten(turn, overfull) for turn in turns]
    limit = max_message_characters(bot)
    if turns and len(turns[-1]) > limit:
        bounded[-1] = shorten(turns[-1], limit)
        if bot.fixed_answer(bounded) is None:
            raise MessageTooLongError(len(turns[-1]), bot.max_message_tokens)
    return bounded


def shorten(text: str, characters: int) -> str:
    """Return the beginning and the end of a text longer than `characters`, any other text unchanged.

    The result of shortening is still longer than `characters`, by one line break.
    """
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]}\n{text[len(text) - (characters - half) :]}"

"""Turns of a history as the model reads them, and the script of its reply."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import cast

from chatbot.decoding.settings import Script
from chatbot.errors import shown
from chatbot.text.characters import HAN, script_of, simplified, traditional, typed_text
from chatbot.text.dialogue import DialogueError
from chatbot.text.tokenizer import DialogueTokenizer

CACHED_TURNS = 8192
"""Number of turns whose tokens are cached, because every request contains the whole history."""

CACHED_TURN_CHARACTERS = 1000
"""Longer turns are not cached."""

CHECKED_CHARACTERS = 1000
"""A message is checked for readable characters in parts of this length; usually the first part has some."""

ROLES = ("user", "assistant")
SYSTEM_ROLES = ("system", "developer")
"""Roles of a system prompt; OpenAI's newer API calls it developer."""

History = Sequence[str] | Sequence[Mapping[str, str]]
"""Turns as strings, or messages with role and content; oldest first. Messages can begin with a system prompt."""

_HAN_RUNS = re.compile(f"([{HAN}]+)")


class TurnReader:
    """Converts turns to the form of the training data and to token ids, which are cached.

    Args:
        tokenizer: Tokenizer of the model.
    """

    def __init__(self, tokenizer: DialogueTokenizer):
        self.tokenizer = tokenizer
        self.keeps_lines = tokenizer.marks is not None  # chat models were trained on texts with line breaks
        self._ids_cached = lru_cache(CACHED_TURNS)(self._ids)

    def text(self, turn: str, script: Script = "typed") -> str:
        """Return a turn as the model sees it; see `chatbot.text.characters.typed_text`.

        Args:
            turn: The turn, as a person typed it.
            script: `typed` keeps traditional characters, the other values turn them into simplified ones.
        """
        text = typed_text(turn, self.keeps_lines)
        return text if script == "typed" else simplified(text)

    def ids(self, turn: str, script: Script = "typed") -> list[int]:
        """Return the token ids of a turn; arguments as for `text`."""
        read = self._ids_cached if len(turn) < CACHED_TURN_CHARACTERS else self._ids
        return list(read(turn, script != "typed"))

    def _ids(self, turn: str, is_simplified: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(self.text(turn, "simplified" if is_simplified else "typed")))


def join_messages(messages: Iterable[tuple[str, str]], opening: Sequence[str] = ()) -> tuple[list[str], bool]:
    """Return alternating turns, beginning with the user's, from messages of the roles `user` and `assistant`.

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


def split_system(history: History, system: str | None = None) -> tuple[History, str]:
    """Return a history without the system messages at its beginning, and the system prompt.

    Args:
        history: Strings or messages; several system messages are joined by an empty line.
        system: System prompt that was given separately.

    Raises:
        DialogueError: `system` is not a string, or a system prompt is both in the history and in `system`.
    """
    if system is not None and not isinstance(system, str):
        raise DialogueError(f"The system prompt must be a text, got {shown(system)}.")
    prompts: list[str] = []
    for message in () if isinstance(history, str) else history:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping) or message.get("role") not in SYSTEM_ROLES or not isinstance(content, str):
            break
        prompts.append(content)
    if prompts and system:
        raise DialogueError("The history begins with a system prompt. Give it there or as system, not both.")
    return history[len(prompts) :] if prompts else history, "\n\n".join(prompts) or system or ""


def as_turns(history: History) -> list[str]:
    """Return a history as alternating turns: a list of strings as it is, messages of the OpenAI form joined by role.

    Args:
        history: Strings, oldest first; or messages like `{"role": "user", "content": "你好"}`.

    Raises:
        DialogueError: A message has another role or no text, or the last message is not the user's.
    """
    if isinstance(history, str) or not any(isinstance(message, Mapping) for message in history):
        return cast(list[str], history)  # `check_turns` explains the fault
    pairs = []
    for message in history:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise DialogueError(
                f"Each message needs a role, {' or '.join(ROLES)} (system only at the beginning), and its text as content,"
                f" got {shown(message)}."
            )
        pairs.append((role, content))
    turns, _ = join_messages(pairs)
    if pairs[-1][0] != "user":
        raise DialogueError("The last message must be the user's: it is the one that is answered.")
    return turns


def as_messages(turns: Sequence[str], system: str = "") -> list[dict[str, str]]:
    """Return turns as messages of the OpenAI form, after the system prompt if there is one; the user speaks first."""
    first = [{"role": SYSTEM_ROLES[0], "content": system}] if system else []
    return first + [{"role": ROLES[index % 2], "content": turn} for index, turn in enumerate(turns)]


def check_turns(turns: Sequence[str]) -> None:
    """Check that a history can be answered; needs no model.

    Raises:
        DialogueError: The history is empty, or its last turn has no readable character.
    """
    if isinstance(turns, str) or not all(isinstance(turn, str) for turn in turns):
        raise DialogueError("The history must be a list of strings, oldest turn first.")
    if not turns:
        raise DialogueError("The history is empty: give at least one turn.")
    message = turns[-1]
    starts = range(0, len(message), CHECKED_CHARACTERS)
    if not any(typed_text(message[start : start + CHECKED_CHARACTERS], False) for start in starts):
        raise DialogueError("The message is empty; type something to talk about.")


def asks_in_traditional(turns: Sequence[str]) -> bool:
    """Whether the user writes traditional characters, judged by the newest message that differs between the scripts."""
    return next((script == "traditional" for turn in turns[::-2] if (script := script_of(turn)) is not None), False)


def in_traditional(reply: str, is_complete: bool) -> str:
    """Return a reply in traditional characters.

    The word decides which traditional character is right (发 in 头发 and in 发现), so uninterrupted runs of Chinese
    characters are converted as a whole. The last run of an unfinished reply is left out, because it may still change.

    Args:
        reply: Reply so far.
        is_complete: Whether the reply has ended.
    """
    runs = _HAN_RUNS.split(reply)
    if not is_complete and not runs[-1] and len(runs) > 1:
        del runs[-2]
    return "".join(map(traditional, runs))

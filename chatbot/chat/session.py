"""ChatSession: one conversation between a person and a bot, with undo, retry and edit."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from chatbot.chat.bot import MAX_SEED, Chatbot, Reply
from chatbot.chat.turns import as_messages, split_system
from chatbot.chat.variants import MAX_VARIATION
from chatbot.chat.worker import Worker
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import FileError
from chatbot.storage import read_json, write_json
from chatbot.text.dialogue import DialogueError

OTHER_SEEDS = 3
"""Seeds that a retry tries; if their replies were all seen, it tries the variants of the last one."""


class ChatSession:
    """A conversation. The person and the bot take turns, and the person begins.

    Replies come from a `Chatbot`, or from a `chatbot.chat.worker.Worker` that decodes for many sessions together.

    Attributes:
        turns: All turns so far, oldest first; those of the bot have odd indices.
        last_reply: The newest `Reply`, or None.
        variation: Number of the variant shown as the last reply (`chatbot.chat.variants`); 0 is the original reply.
        system: System prompt of a chat model, or "".
    """

    def __init__(self, bot: Chatbot | Worker, turns: Sequence[str] = (), system: str = "", **changes: Any):
        """Start a conversation, or continue one from its turns; `changes` are fields of `ReplySettings`, and `spread`."""
        self.bot, self.turns, self.system, self.changes = bot, list(turns), system, changes
        self.last_reply: Reply | None = None
        self.variation = 0
        self._seen: tuple[list[str], set[str]] = ([], set())  # a history and the replies to it

    def __repr__(self) -> str:
        last = f", the last: {self.turns[-1]}" if self.turns else ""
        return f"<ChatSession of {len(self.turns)} turns with {self.bot!r}{last}>"

    @classmethod
    def load(cls, bot: Chatbot | Worker, path: str | Path) -> ChatSession:
        """Continue a conversation from a file that `save` wrote, with the same bot or another.

        Raises:
            FileError: The file cannot be read or is damaged.
        """
        content = read_json(Path(path), FileError, "save the conversation again")
        try:
            messages, system = split_system(content["messages"])
            turns = [cast(Mapping[str, str], message)["content"] for message in messages]
            changes = {name: value for name, value in content["changes"].items() if name != "spread"}
            ReplySettings().with_changes(**changes)
            if messages != as_messages(turns) or not all(isinstance(turn, str) for turn in turns):
                raise ValueError("the messages do not alternate")
        except (KeyError, TypeError, ValueError, AttributeError):  # ValueError includes XianliaoError
            raise FileError(f"{path} is not a saved conversation. Give a file that ChatSession.save wrote.") from None
        return cls(bot, turns, system, **content["changes"])

    def save(self, path: str | Path) -> None:
        """Write turns and settings as JSON, with the messages in the OpenAI form; an older file is replaced."""
        write_json(Path(path), {"messages": self.messages, "changes": self.changes})

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns as messages like `{"role": "user", "content": "你好"}`, after the system prompt if there is one."""
        return as_messages(self.turns, self.system)

    def reply(self, message: str, seed: int | None = None) -> str:
        """Return the reply to `message`, and add both to the history.

        Raises:
            DialogueError: The message is empty or too long; the history is unchanged.
        """
        return _last(self.stream(message, seed))

    def stream(self, message: str, seed: int | None = None) -> Generator[str, None, None]:
        """Yield the reply to `message` as it grows, and add both to the history at the end.

        A stream that is closed or interrupted (Ctrl+C) early adds the text shown so far, with stop reason `stopped`. A
        stream that fails, or ends before the first token, changes nothing.
        """
        return self._stream([*self.turns, message], seed)

    def _stream(
        self, history: list[str], seed: int | None, variation: int = 0, **more: Any
    ) -> Generator[str, None, None]:
        shown = None
        if variation:
            more["variation"] = variation
        if self.system:
            more["system"] = self.system
        try:
            for reply in self.bot.stream_replies(history, seed, **{**self.changes, **more}):
                shown = reply
                yield reply.text
        except (GeneratorExit, KeyboardInterrupt):
            if shown is not None and (shown.token_ids or shown.stop_reason == "safety"):
                self._remember(history, shown, variation)
            raise
        if shown is not None:
            self._remember(history, shown, variation)

    def _remember(self, history: list[str], reply: Reply, variation: int) -> None:
        self._seen = history, self._seen_replies(history) | {reply.text}
        self.turns, self.last_reply, self.variation = [*history, reply.text], reply, variation

    def _seen_replies(self, history: list[str]) -> set[str]:
        """Return the replies to a history that were shown, as far as they are known."""
        last = {self.turns[-1]} if self.turns and self.turns[:-1] == history else set()
        return last | (self._seen[1] if self._seen[0] == history else set())

    def undo(self) -> str:
        """Remove the last exchange and return its message.

        Raises:
            DialogueError: The history is empty.
        """
        if len(self.turns) < 2:
            raise DialogueError("There is nothing to take back yet.")
        message = self.turns[-2]
        self.turns, self.last_reply, self.variation = self.turns[:-2], None, 0
        return message

    def retry(self, seed: int | None = None) -> str:
        """Replace the last reply by another reply to the same message, and return the new one.

        Args:
            seed: Seed of the reply, which may be one that was shown; None tries the next seeds for a new reply.

        Raises:
            DialogueError: The history is empty.
        """
        return _last(self.stream_retry(seed))

    def stream_retry(self, seed: int | None = None) -> Generator[str, None, None]:
        """Yield another reply to the last message as it grows; see `stream` for its end and `retry` for errors."""
        if len(self.turns) < 2:
            raise DialogueError("There is nothing to try again yet.")
        if seed is not None:
            return self.stream_edit(len(self.turns) - 2, self.turns[-2], seed)
        return self._stream_unseen(self.turns[:-1])

    def _stream_unseen(self, history: list[str]) -> Generator[str, None, None]:
        """Yield the first reply that was not seen, of the next seeds and of their variants, or else the last of these."""
        before = self.turns, self.last_reply, self.variation
        seen = self._seen_replies(history)
        seed = secrets.randbelow(MAX_SEED) if self.last_reply is None else self.last_reply.seed
        seeds = [(seed + number) % (MAX_SEED + 1) for number in range(1, 1 + OTHER_SEEDS)]
        attempts = [(seed, 0) for seed in seeds] + [(seeds[-1], number) for number in range(1, 1 + MAX_VARIATION)]
        text, is_shown = "", False
        for seed, variation in attempts if self._can_vary else attempts[:1]:
            stream = self._stream(history, seed, variation)
            try:
                for text in stream:
                    if not any(old.startswith(text) for old in seen):
                        is_shown = True
                        yield text
            except (GeneratorExit, KeyboardInterrupt):
                stream.close()
                if not is_shown:
                    self.turns, self.last_reply, self.variation = before
                raise
            is_fixed = self.last_reply is not None and self.last_reply.stop_reason == "safety"
            if is_shown or is_fixed or text not in seen:
                break
        if not is_shown:
            yield text

    @property
    def _can_vary(self) -> bool:
        """Whether a reply has variants with the settings of the session."""
        bot = self.bot.bot if isinstance(self.bot, Worker) else self.bot
        changes = {name: value for name, value in self.changes.items() if name != "spread"}
        settings = bot.settings.with_changes(**changes)
        return settings.method == "sample" and not settings.thinks

    def another(self, spread: float | None = None) -> str:
        """Replace the last reply by its next variant, another way to say it with the same seed, and return the variant.

        Args:
            spread: How different the variants are, 0 to 2; default: the spread in the session's `changes`, or 1.

        Raises:
            DialogueError: The history is empty.
            ReplySettingsError: The settings do not sample, or all variants were shown.
        """
        return _last(self.stream_another(spread))

    def stream_another(self, spread: float | None = None) -> Generator[str, None, None]:
        """Yield the reply of `another` as it grows; see `stream` for its end and `another` for errors."""
        if len(self.turns) < 2:
            raise DialogueError("There is nothing to say in another way yet.")
        seed = None if self.last_reply is None else self.last_reply.seed
        more = {} if spread is None else {"spread": spread}
        return self._stream(self.turns[:-1], seed, self.variation + 1, **more)

    def edit(self, index: int, message: str, seed: int | None = None) -> str:
        """Replace the person's turn `index`, remove the turns after it, and return the new reply.

        Raises:
            DialogueError: `index` is not a turn of the person, or the message is empty or too long; the history is
                unchanged.
        """
        return _last(self.stream_edit(index, message, seed))

    def stream_edit(self, index: int, message: str, seed: int | None = None) -> Generator[str, None, None]:
        """Yield the reply of `edit` as it grows; see `stream` for its end and `edit` for errors."""
        if index % 2 or not 0 <= index < len(self.turns):
            raise DialogueError(f"Turn {index} is not one of yours; yours are 0, 2, … below {len(self.turns)}.")
        return self._stream([*self.turns[:index], message], seed)

    def clear(self) -> None:
        """Remove all turns."""
        self.turns, self.last_reply, self.variation = [], None, 0


def _last(texts: Iterator[str]) -> str:
    text = ""
    for text in texts:  # noqa: B007
        pass
    return text

"""ChatSession: one conversation between a person and a bot, that can be taken back, changed and tried again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chatbot.chat.bot import Chatbot, Reply
from chatbot.chat.worker import Worker
from chatbot.text.dialogue import DialogueError


class ChatSession:
    """History in, replies out. The person speaks first, the bot second, in turn.

    Whose replies they are is a `Chatbot`, or a `chatbot.chat.worker.Worker` that decodes for many sessions at once.

    Attributes:
        turns: All turns so far, oldest first; the bot's have odd indices.
        last_reply: The newest `Reply`, or None.
    """

    def __init__(self, bot: Chatbot | Worker, turns: Sequence[str] = (), **changes):
        """Starts a conversation, or continues one from its turns; `changes` are fields of `ReplySettings`."""
        self.bot, self.turns, self.changes = bot, list(turns), changes
        self.last_reply: Reply | None = None

    def reply(self, message: str, seed: int | None = None) -> str:
        """Says `message` and returns the answer; both join the history.

        Raises:
            DialogueError: The message is empty or too long; the history stays as it was.
        """
        text = ""
        for text in self.stream(message, seed):  # noqa: B007
            pass
        return text

    def stream(self, message: str, seed: int | None = None) -> Iterator[str]:
        """`reply` as it grows.

        A stream that is closed early keeps what was said so far, with reason `stopped`; one that fails, or is closed
        before anything was said, changes nothing.
        """
        history = [*self.turns, message]
        reply = None
        try:
            for reply in self.bot.stream_replies(history, seed, **self.changes):
                yield reply.text
        except GeneratorExit:
            if reply is not None and (reply.token_ids or reply.stop_reason == "safety"):
                self._remember(history, reply)
            raise
        self._remember(history, reply)

    def _remember(self, history: list[str], reply: Reply) -> None:
        self.turns, self.last_reply = [*history, reply.text], reply

    def undo(self) -> str:
        """Takes the last exchange back and returns the message it began with.

        Raises:
            DialogueError: Nothing has been said.
        """
        if len(self.turns) < 2:
            raise DialogueError("There is nothing to take back yet.")
        message = self.turns[-2]
        self.turns, self.last_reply = self.turns[:-2], None
        return message

    def retry(self, seed: int | None = None) -> str:
        """Another answer to the last message."""
        if len(self.turns) < 2:
            raise DialogueError("There is nothing to try again yet.")
        return self.edit(len(self.turns) - 2, self.turns[-2], seed)

    def edit(self, index: int, message: str, seed: int | None = None) -> str:
        """Changes the person's turn `index`, forgets what came after it, and answers anew; a failure changes nothing.

        Raises:
            DialogueError: `index` is not a turn of the person, or the message is empty or too long.
        """
        if index % 2 or not 0 <= index < len(self.turns):
            raise DialogueError(f"Turn {index} is not one of yours; yours are 0, 2, … below {len(self.turns)}.")
        before, self.turns = self.turns, self.turns[:index]
        try:
            return self.reply(message, seed)
        except BaseException:
            self.turns = before
            raise

    def clear(self) -> None:
        """Starts over."""
        self.turns, self.last_reply = [], None

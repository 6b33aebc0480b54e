"""Effects of the actions on the page (send, stop, edit, …), independent of Gradio."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from chatbot import Chatbot, ChatSession, Reply
from chatbot.chat.request import MAX_SEED, MessageTooLongError, SystemPromptError, candidate_seeds
from chatbot.chat.worker import BusyError, Worker, WorkerError
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError
from chatbot.text.characters import typed_text
from ui.page.chats import (
    MAX_THOUGHT_CHARACTERS,
    Chat,
    ChatError,
    ChatMessage,
    check_room,
    ends_with_user,
    has_spare_room,
    turns_of,
    up_to_last_user,
    with_message,
    without_empty_reply,
    without_unanswered,
)
from ui.page.signature import sign
from ui.page.text import TEXT
from ui.server.work import OverloadError

OTHER_WAYS = 4
"""Number of variants to try when a new reply is one that the person has seen."""

CANDIDATES = 3
"""Number of replies that "More replies" offers."""

SHOW_SECONDS = 0.05
"""Shortest time between two updates of a growing reply; without it the browser is too busy to handle its buttons."""

ORDINARY_MESSAGES, ORDINARY_CHARACTERS = 100, 10_000
"""In a larger conversation a growing reply is shown less often, by the same factor, because each update sends all of it."""


class ReplyCallback(Protocol):
    """Function that is called after each reply of the page; see `ui.server.app.reply_recorder`."""

    def __call__(
        self,
        model: str,
        reply: Reply,
        first_token_seconds: float | None,
        conversation: str,
        message: str,
        reason: str | None = None,
        /,
    ) -> None: ...


@dataclass(frozen=True)
class PageSettings:
    """Settings of a reply in the page's fields.

    Attributes:
        seed: Seed of the reply; None chooses a new one each time.
        temperature: None keeps the checkpoint's value.
        top_p: None keeps the checkpoint's value.
    """

    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None

    def changes(self, bot: Chatbot, chat: Chat) -> dict[str, Any]:
        """Return fields of `ReplySettings`, and the system prompt of a conversation if the bot takes one."""
        changes: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p}
        changes["system"] = chat["system"] if bot.layout.takes_system and chat["system"] else None
        return {name: value for name, value in changes.items() if value is not None}

    @classmethod
    def from_fields(cls, seed: Any, temperature: Any, top_p: Any) -> PageSettings:
        """Return the reply settings that the fields of the page hold.

        Raises:
            ChatError: A value is not a number, or the seed is out of range.
        """
        try:
            settings = cls(
                None if seed is None or seed == "" else int(seed),
                None if temperature is None else float(temperature),
                None if top_p is None else float(top_p),
            )
        except (TypeError, ValueError, OverflowError):
            settings = cls(-1)
        if settings.seed is not None and not 0 <= settings.seed <= MAX_SEED:
            raise ChatError("not_a_number", max_seed=MAX_SEED)
        return settings

    def message(self, text: str, seed: int, model: str) -> ChatMessage:
        """Return a reply as a message, with the fields that reproduce it."""
        message: ChatMessage = {"role": "assistant", "text": text, "seed": seed, "model": model}
        if self.temperature is not None:
            message["temperature"] = self.temperature
        if self.top_p is not None:
            message["top_p"] = self.top_p
        return message


def preset(name: str, settings: ReplySettings) -> tuple[float, float]:
    """Return temperature and top-p of a style; `balanced` is the checkpoint's own setting."""
    return {"careful": (0.4, 0.8), "free": (0.9, 0.95)}.get(name, (settings.temperature, settings.top_p))


def crisis_replies(workers: Mapping[str, Worker]) -> list[str]:
    """Return the fixed replies to a person in crisis, of all checkpoints; the page makes their telephone numbers links."""
    replies: dict[str, None] = {}
    for worker in workers.values():
        if (safety := worker.bot.safety) is not None:
            replies |= dict.fromkeys([safety.crisis_reply, *chain.from_iterable(safety.care.replies.values())])
    return list(replies)


def with_user_message(bot: Chatbot, chat: Chat, text: str, neutral_title: str = "…") -> Chat:
    """Return the conversation after a message of the user.

    Messages that were never answered are kept and read together with the new one; if that is too long, they are dropped.
    A conversation that begins with a message that gets a fixed reply is called `neutral_title`, because titles can be
    seen by others.

    Raises:
        ChatError: The message is empty, or it or the conversation is too long. A person in crisis gets an answer to a
            message of any length, in a conversation that is too long as well while `chats.SPARE_MESSAGES` last.
    """
    if not typed_text(text):
        raise ChatError("empty")
    before = without_empty_reply(chat)
    try:
        check_room(chat, len(text))
    except ChatError:
        after = with_message(before, {"role": "user", "text": text})
        if not has_spare_room(after) or bot.fixed_answer(turns_of(after)) is None:
            raise
        return after if chat["title"] else {**after, "title": neutral_title}
    for start in (before, without_unanswered(before)):
        after = with_message(start, {"role": "user", "text": text})
        turns = turns_of(after)
        if bot.fixed_answer(turns) is not None:  # of any length
            return after if chat["title"] else {**after, "title": neutral_title}
        if bot.reads(turns[-1]):
            return after
    raise ChatError("too_long", characters=len(text), limit=_characters_read(bot, text))


def _characters_read(bot: Chatbot, text: str) -> int:
    """Return about how many characters of a text the model reads, measured on the beginning of the text."""
    sample = text[: bot.max_message_tokens]
    count = bot.max_message_tokens * len(sample) // max(1, len(bot.reader.ids(sample, bot.settings.script)))
    return count // 10 * 10 or count


def answer(
    worker: Worker,
    chat: Chat,
    settings: PageSettings,
    language: str,
    on_reply: ReplyCallback | None = None,
    avoid: Collection[str] = (),
) -> Iterator[tuple[Chat, str]]:
    """Yield the conversation with the reply so far, and the status line, at most every `seconds_between_updates`.

    The last item has the complete reply. A fixed reply (`chatbot.safety`) has no seed. Closing the iterator cancels the
    reply.

    Args:
        worker: Worker that decodes the reply.
        chat: Conversation that ends with a message of the user.
        settings: Settings of the reply.
        language: `zh` or `en`, for the status line.
        on_reply: Function to call when the reply ends or is cancelled.
        avoid: Replies that were seen. Without a seed in the settings, another one is looked for.

    Raises:
        XianliaoError: The conversation does not end with a message of the user, or it cannot be answered.
    """
    if not ends_with_user(chat):
        raise ChatError("nothing_to_answer")
    bot, turns = worker.bot, turns_of(chat)
    fixed = worker.fixed_answer(turns) is not None
    session = ChatSession(worker, turns[:-1], **settings.changes(bot, chat))
    seconds = seconds_between_updates(chat)
    text, began, first = "", time.monotonic(), None
    shown = began if seconds > SHOW_SECONDS else 0.0
    stream = session.stream(turns[-1], settings.seed)
    try:
        for text in stream:
            first = time.monotonic() - began if first is None and not fixed else first
            is_old = any(seen.startswith(text) for seen in avoid)
            if text and not fixed and not is_old and time.monotonic() - shown >= seconds:
                shown = time.monotonic()
                yield with_message(chat, {"role": "assistant", "text": text}), ""
    finally:
        close(stream)
        if on_reply is not None and session.last_reply is not None:
            on_reply(bot.name, session.last_reply, first, chat["id"], turns[-1])
    reply = session.last_reply
    assert reply is not None  # a stream that ends without an error has one
    if fixed:
        yield with_message(chat, {"role": "assistant", "text": reply.text}), TEXT[language]["fixed"]
        return
    message = settings.message(text, reply.seed, bot.name)
    if settings.seed is None and text in avoid and bot.settings.method == "sample" and not bot.settings.thinks:
        reply, message = _another_way(worker, chat, settings, reply.seed, on_reply, avoid)
    message = signed(chat, message)
    if reply.thoughts:
        message["thoughts"] = reply.thoughts[:MAX_THOUGHT_CHARACTERS]
    yield with_message(chat, message), status(bot, reply, language)


def _another_way(
    worker: Worker,
    chat: Chat,
    settings: PageSettings,
    seed: int,
    on_reply: ReplyCallback | None,
    avoid: Collection[str],
) -> tuple[Reply, ChatMessage]:
    """Return the first variant of a reply that was not seen, or the last variant that is tried."""
    for number in range(1, OTHER_WAYS + 1):
        reply, message = variant_of(worker, chat, settings, seed, number, 1.0, on_reply)
        if reply.text not in avoid:
            break
    return reply, message


def variant_of(
    worker: Worker,
    chat: Chat,
    settings: PageSettings,
    seed: int,
    number: int,
    spread: float,
    on_reply: ReplyCallback | None,
) -> tuple[Reply, ChatMessage]:
    """Return a variant of the reply to a conversation, and its message; variant 0 is the reply itself."""
    turns = turns_of(chat)
    changes = settings.changes(worker.bot, chat)
    *_, reply = worker.stream_replies(turns, seed, variation=number, spread=spread, **changes)
    if on_reply is not None:
        on_reply(worker.bot.name, reply, None, chat["id"], turns[-1])
    message = settings.message(reply.text, reply.seed, worker.bot.name)
    return reply, (message | {"variation": number, "spread": spread}) if number else message


def seconds_between_updates(chat: Chat) -> float:
    """Return the shortest time between two updates of a growing reply of a conversation."""
    characters = sum(len(message["text"]) for message in chat["messages"])
    return SHOW_SECONDS * max(1, len(chat["messages"]) / ORDINARY_MESSAGES, characters / ORDINARY_CHARACTERS)


def close(stream: Iterator) -> None:
    """Close an iterator if it is a generator, which frees the place of its reply in the worker."""
    if isinstance(stream, Generator):
        stream.close()


def signed(chat: Chat, message: ChatMessage) -> ChatMessage:
    """Return a complete reply to a conversation with its signature."""
    return {**message, "signature": sign([*turns_of(chat), message["text"]], message)}


def explain(error: XianliaoError, language: str) -> str:
    """Return the message of an error, in the page's language if it is one of the page's errors."""
    texts = TEXT[language]
    if isinstance(error, ChatError):
        return texts[error.name].format(**error.values)
    if isinstance(error, (MessageTooLongError, SystemPromptError)):
        name = "too_long" if isinstance(error, MessageTooLongError) else "system_too_long"
        return texts[name].format(characters=error.characters, limit=error.max_tokens)
    if isinstance(error, (BusyError, OverloadError)):
        return texts["busy"]
    return texts["closing"] if isinstance(error, WorkerError) else str(error)


def is_slip(error: XianliaoError) -> bool:
    """Whether the person can correct an error: nothing has failed."""
    if isinstance(error, ChatError):
        return error.name != "not_recorded"
    return isinstance(error, (MessageTooLongError, SystemPromptError))


def candidates(
    worker: Worker, chat: Chat, settings: PageSettings, on_reply: ReplyCallback | None = None
) -> Iterator[list[ChatMessage]]:
    """Yield several replies to the last message of the user, different ones if possible, again after each token.

    Args:
        worker: Worker that decodes them.
        chat: The conversation; messages after the last one of the user are ignored.
        settings: Settings of the replies.
        on_reply: Function to call when a reply has ended.

    Raises:
        XianliaoError: The conversation has no message of the user, or that message gets a fixed reply.
    """
    shown = {message["text"] for message in chat["messages"][-1:] if message["role"] == "assistant"}
    chat = up_to_last_user(chat)
    bot = worker.bot
    turns = turns_of(chat) if ends_with_user(chat) else []
    if not turns or worker.fixed_answer(turns) is not None:
        raise ChatError("nothing_to_answer")
    first = worker.prepare(turns, settings.seed).seed
    seeds = candidate_seeds(first, CANDIDATES + (settings.seed is not None))[-CANDIDATES:]
    messages = [settings.message("", seed, bot.name) for seed in seeds]
    last: dict[int, Reply] = {}
    changes = settings.changes(bot, chat)
    streams = {index: worker.stream_replies(turns, seed, **changes) for index, seed in enumerate(seeds)}
    try:
        while streams:
            for index, stream in list(streams.items()):
                reply = next(stream, None)
                if reply is not None:
                    messages[index]["text"], last[index] = reply.text, reply
                    continue
                del streams[index]
                if on_reply is not None:
                    on_reply(bot.name, last[index], None, chat["id"], turns[-1])
                if messages[index]["text"] in shown and bot.settings.method == "sample":
                    _, messages[index] = _another_way(worker, chat, settings, seeds[index], on_reply, shown)
                shown.add(messages[index]["text"])
                messages[index] = signed(chat, messages[index])
            yield messages
    finally:
        for stream in streams.values():
            close(stream)


def status(bot: Chatbot, reply: Reply, language: str) -> str:
    """Return one line about a complete reply: tokens, speed, reason of its end, seed, and the limit."""
    texts = TEXT[language]
    return texts["status"].format(
        tokens=len(reply.token_ids),
        speed=reply.tokens_per_second,
        reason=texts.get(reply.stop_reason, reply.stop_reason),
        seed=reply.seed,
        limit=bot.settings.limit_tokens,
    )

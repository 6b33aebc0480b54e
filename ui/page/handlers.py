"""What happens when a person uses the page; knows nothing about Gradio."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from chatbot import Chatbot, ChatSession, Reply
from chatbot.chat.bot import MAX_SEED, candidate_seeds
from chatbot.chat.trace import TracedStep
from chatbot.chat.worker import BusyError, Worker, WorkerError
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError
from chatbot.text.dialogue import clean_turn
from ui.page.chats import ChatError, turns_of, with_message, within_bounds, without_empty
from ui.page.text import TEXT

_MARKUP = re.compile("[<&](?=[A-Za-z/!?#])")
_MARK_BROKEN = re.compile("(?<=[<&])\u200b(?=[A-Za-z/!?#])")
_INVISIBLE = re.compile("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
CANDIDATES = 3
SHOW_SECONDS = 0.05
"""A page that is redrawn for every token of a fast bot has no time left for its buttons."""


@dataclass(frozen=True)
class Wish:
    """How a person wants a reply.

    Attributes:
        seed: None is another one every time.
        temperature: None leaves the checkpoint's.
        top_p: None leaves the checkpoint's.
    """

    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def changes(self) -> dict:
        """Fields of `ReplySettings`."""
        changes = {"temperature": self.temperature, "top_p": self.top_p}
        return {name: value for name, value in changes.items() if value is not None}

    @classmethod
    def of(cls, seed: object, temperature: object, top_p: object) -> Wish:
        """The wish of a page's fields.

        Raises:
            ChatError: They are no numbers.
        """
        try:
            wish = cls(
                None if seed is None else int(seed), *(None if v is None else float(v) for v in (temperature, top_p))
            )
        except (TypeError, ValueError, OverflowError):
            wish = cls(-1)
        if wish.seed is not None and not 0 <= wish.seed <= MAX_SEED:
            raise ChatError("not_a_number", most=MAX_SEED)
        return wish

    def record(self, seed: int, model: str) -> dict:
        """What goes beside a reply, so that it can be had again."""
        return {
            "seed": seed,
            "model": model,
            **self.changes,
        }


def preset(name: str, settings: ReplySettings) -> tuple[float, float]:
    """Temperature and top-p of a style; `balanced` is what the checkpoint records."""
    return {"careful": (0.5, 0.8), "free": (1.1, 0.95)}.get(name, (settings.temperature, settings.top_p))


def shown_as_text(text: str) -> str:
    """A message such that a page that reads HTML shows it letter for letter.

    A zero-width space after `<` and `&` keeps tags and entities from being any, `as_typed` takes it out again;
    characters that turn the direction of what follows, and control characters, are shown as �.
    """
    return _MARKUP.sub("\\g<0>\u200b", _INVISIBLE.sub("�", text))


def as_typed(text: str) -> str:
    """What `shown_as_text` was given."""
    return _MARK_BROKEN.sub("", text)


def view_of(chat: Mapping, language: str) -> list[dict]:
    """The messages as the page shows them, one for each of the conversation."""
    return [
        {"role": "assistant", "content": TEXT[language]["divider"]}
        if message["role"] == "divider"
        else {"role": message["role"], "content": shown_as_text(message["text"])}
        for message in chat["messages"]
    ]


def said(bot: Chatbot, chat: Mapping, message: str) -> dict:
    """The conversation after the person's message; a message that was never answered stays, and is read with this one.

    Raises:
        ChatError: It cannot be sent.
    """
    if not clean_turn(message):
        raise ChatError("empty")
    after = turns_of(with_message(without_empty(chat), "user", message))
    if bot.fixed_answer(after) is not None:  # a person in need gets an answer to a message of any length
        return with_message(without_empty(within_bounds(chat, len(message))), "user", message)
    if bot.count_tokens(message) > bot.max_message_tokens:
        raise ChatError("too_long", characters=len(message), limit=bot.max_message_tokens)
    within_bounds(chat, len(message))
    chat = with_message(without_empty(chat), "user", message)
    together = bot.count_tokens(turns_of(chat)[-1])
    if together > bot.max_message_tokens:  # the unanswered one is dropped
        chat = {**chat, "messages": [*chat["messages"][:-2], chat["messages"][-1]]}
    return chat


def answer(
    worker: Worker, chat: Mapping, wish: Wish, language: str, note: Callable[..., None] | None = None
) -> Iterator[tuple[dict, str]]:
    """The conversation with the reply so far and the status line, again as it grows, at most every `SHOW_SECONDS`.

    A fixed reply (`chatbot.safety`) has no seed beside it. Closing it early frees the worker's place. `note` is told of the
    reply when it has ended, as `ui.server.app.note_reply_in` describes.

    Raises:
        XianliaoError: There is nothing to answer, or it cannot be answered.
    """
    if not waits(chat):
        raise ChatError("nothing_to_answer")
    *turns, message = turns_of(chat)
    fixed = worker.bot.fixed_answer([*turns, message]) is not None
    session = ChatSession(worker, turns, **wish.changes)
    text, shown, began, first = "", 0.0, time.monotonic(), None
    stream = session.stream(message, wish.seed)
    try:
        for text in stream:
            first = time.monotonic() - began if first is None and not fixed else first
            if text and not fixed and time.monotonic() - shown >= SHOW_SECONDS:
                shown = time.monotonic()
                yield with_message(chat, "assistant", text), ""
    finally:
        stream.close()
        if note is not None and session.last_reply is not None:
            note(worker.bot.name, session.last_reply, first, chat["id"], message)
    reply = session.last_reply
    if fixed:
        yield with_message(chat, "assistant", reply.text), TEXT[language]["fixed"]
        return
    yield (
        with_message(chat, "assistant", text, **wish.record(reply.seed, worker.bot.name)),
        status(worker.bot, reply, language),
    )


def in_words(error: XianliaoError, language: str) -> str:
    """An error in the page's language, where it has one of ours."""
    words = TEXT[language]
    if isinstance(error, ChatError):
        return words[error.name].format(**error.values)
    known = {BusyError: "busy", WorkerError: "closing"}
    return words[known[type(error)]] if type(error) in known else str(error)


def waits(chat: Mapping) -> bool:
    """Whether the last message is the person's."""
    return bool(chat["messages"]) and chat["messages"][-1]["role"] == "user"


def unanswered(chat: Mapping) -> dict:
    """The conversation up to the last message of the person."""
    messages = list(chat["messages"])
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return {**chat, "messages": messages}


def several(
    worker: Worker, chat: Mapping, wish: Wish, language: str, note: Callable[..., None] | None = None
) -> Iterator[list[dict]]:
    """Some replies to the last message, `{"text", "seed", …}` each, again after each token.

    Raises:
        XianliaoError: There is nothing to answer, or what there is gets a fixed reply.
    """
    chat = unanswered(chat)
    if not waits(chat) or worker.bot.fixed_answer(turns_of(chat)) is not None:
        raise ChatError("nothing_to_answer")
    turns = turns_of(chat)
    first = worker.bot.request(turns, wish.seed).seed
    seeds = candidate_seeds(first, CANDIDATES + (wish.seed is not None))[-CANDIDATES:]
    found = [{"text": "", **wish.record(seed, worker.bot.name)} for seed in seeds]
    last: dict[int, Reply] = {}
    streams = {place: worker.stream_replies(turns, seed, **wish.changes) for place, seed in enumerate(seeds)}
    try:
        while streams:
            for place, stream in list(streams.items()):
                reply = next(stream, None)
                if reply is not None:
                    found[place]["text"], last[place] = reply.text, reply
                    continue
                del streams[place]
                if note is not None:
                    note(worker.bot.name, last[place], None, chat["id"], turns[-1])
            yield found
    finally:
        for stream in streams.values():
            stream.close()


def inside(worker_of: Callable[[str | None], Worker], chat: Mapping, language: str) -> list[TracedStep]:
    """How the last reply was chosen, step by step, by the model that made it.

    Raises:
        XianliaoError: There is none that the model gave.
    """
    place = max((place for place, m in enumerate(chat["messages"]) if m["role"] == "assistant"), default=0)
    made = chat["messages"][place] if chat["messages"] else {}
    before = {**chat, "messages": chat["messages"][:place]}
    if "seed" not in made or not waits(before):
        raise ChatError("nothing_to_look_at")
    wish = Wish(int(made["seed"]), made.get("temperature"), made.get("top_p"))
    worker = worker_of(made.get("model"))
    if worker.bot.fixed_answer(turns_of(before)) is not None:
        raise ChatError("nothing_to_look_at")
    return list(worker.trace(turns_of(before), wish.seed, **wish.changes))


def status(bot: Chatbot, reply: Reply, language: str) -> str:
    """One line about a finished reply: tokens, speed, why it stopped, seed, bound."""
    words = TEXT[language]
    return words["status"].format(
        tokens=len(reply.token_ids),
        speed=reply.tokens_per_second,
        reason=words.get(reply.stop_reason, reply.stop_reason),
        seed=reply.seed,
        limit=bot.settings.limit_tokens,
    )

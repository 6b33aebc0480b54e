"""Distributions of replies in the unit ball of a message, and the reply at a point of the ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from chatbot.chat.request import MAX_SEED, max_message_characters
from chatbot.chat.variants import MAX_COORDINATE, latent_of
from chatbot.chat.worker import MAX_ENCODED, Worker
from chatbot.text.dialogue import valid_text
from ui.page import chats
from ui.page.handlers import ReplyCallback, signed
from ui.page.variants import asked_again

DIGITS = 3
"""Decimal places of coordinates, so that a point that a browser sends back is the same number."""


class ShownReply(TypedDict):
    """q(z|c,r) of a reply, in coordinates in which the prior is the standard normal.

    Attributes:
        text: The reply.
        m: Mean, Z numbers.
        s: Standard deviations, Z numbers.
    """

    text: str
    m: list[float]
    s: list[float]


def has_ball(worker: Worker) -> bool:
    """Whether the model of a worker has a Gaussian latent variable of at least two dimensions, which can be drawn."""
    latent = latent_of(worker.bot)
    return latent is not None and not latent.is_discrete and latent.size > 1


def texts_of(value: Any, most: int) -> list[str]:
    """Return the replies that a browser asks for: 1 to `MAX_ENCODED` texts of at most `most` characters.

    Raises:
        ChatError: The value is not a list of such texts.
    """
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ENCODED:
        raise chats.ChatError("not_a_chat")
    if not all(isinstance(text, str) and len(text) <= most for text in value):
        raise chats.ChatError("not_a_chat")
    return [valid_text(text) for text in value]


def point_of(value: Any, size: int) -> list[float]:
    """Return a point that a browser sends: `size` numbers, cut to the range of `MAX_COORDINATE`, with `DIGITS` places.

    Raises:
        ChatError: The value is not a list of that many numbers.
    """
    if not isinstance(value, list) or len(value) != size or not all(map(chats.is_number, value)):
        raise chats.ChatError("not_a_number", max_seed=MAX_SEED)
    return [round(min(MAX_COORDINATE, max(-MAX_COORDINATE, float(number))), DIGITS) for number in value]


def encoded(worker_of: Callable[[str | None], Worker], chat: chats.Chat, texts: Any) -> list[ShownReply]:
    """Return the distributions of replies to the last message of the user.

    Args:
        worker_of: Function that returns the worker of a checkpoint name.
        chat: Conversation that ends with a complete reply of the model.
        texts: The replies, as a browser sends them.

    Raises:
        XianliaoError: The conversation has no such reply, its model has no Gaussian latent variable, or the texts are
            not a short list.
    """
    worker, asked, settings = asked_again(worker_of, chat)
    if not has_ball(worker):
        raise chats.ChatError("nothing_to_vary")
    replies = texts_of(texts, max_message_characters(worker.bot.settings.limit_tokens))
    q = worker.encode(chats.turns_of(asked), replies, **settings.changes(worker.bot, asked))
    rows = zip(replies, q.mean.tolist(), q.deviation.tolist(), strict=True)
    return [
        {"text": text, "m": [round(x, DIGITS) for x in m], "s": [round(x, DIGITS + 1) for x in s]}
        for text, m, s in rows
    ]


def reply_at(
    worker_of: Callable[[str | None], Worker],
    chat: chats.Chat,
    point: Any,
    on_reply: ReplyCallback | None = None,
) -> chats.ChatMessage:
    """Return the reply at a point of the ball, of the seed, settings and model of the last reply.

    Args:
        worker_of: Function that returns the worker of a checkpoint name.
        chat: Conversation that ends with a complete reply of the model.
        point: Coordinates, as a browser sends them; see `point_of`.
        on_reply: Function to call when the reply has ended.

    Raises:
        XianliaoError: The conversation has no such reply, its model has no Gaussian latent variable, or the point is
            not a list of numbers.
    """
    worker, asked, settings = asked_again(worker_of, chat)
    latent = latent_of(worker.bot)
    if latent is None or settings.seed is None or not has_ball(worker):
        raise chats.ChatError("nothing_to_vary")
    coordinates, turns = point_of(point, latent.size), chats.turns_of(asked)
    changes = settings.changes(worker.bot, asked)
    *_, reply = worker.stream_replies(turns, settings.seed, point=coordinates, **changes)
    if on_reply is not None:
        on_reply(worker.bot.name, reply, None, asked["id"], turns[-1])
    message = settings.message(reply.text, reply.seed, worker.bot.name)
    message["point"] = coordinates
    return signed(asked, message)

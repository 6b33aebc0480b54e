"""Other ways to say a reply, on the page: the server's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatbot.chat.request import MAX_SEED
from chatbot.chat.variants import MAX_SPREAD, MAX_VARIATION
from chatbot.chat.worker import Worker
from ui.page import chats
from ui.page.handlers import PageSettings, ReplyCallback, signed, variant_of


def spread_of(value: Any) -> float:
    """Return the number in the field for the spread of variants.

    Raises:
        ChatError: The value is not a number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise chats.ChatError("not_a_number", max_seed=MAX_SEED) from None


def asked_again(worker_of: Callable[[str | None], Worker], chat: chats.Chat) -> tuple[Worker, chats.Chat, PageSettings]:
    """Return the worker of the last reply, the conversation before this reply, and its settings with its seed.

    Raises:
        ChatError: The conversation does not end with a complete reply of the model.
    """
    *before, last = chat["messages"] or [{"role": "divider", "text": ""}]
    asked: chats.Chat = {**chat, "messages": before}
    if "seed" not in last or not chats.ends_with_user(asked):
        raise chats.ChatError("nothing_to_vary")
    settings = PageSettings.from_fields(last["seed"], last.get("temperature"), last.get("top_p"))
    worker = worker_of(last.get("model"))
    if settings.seed is None or worker.fixed_answer(chats.turns_of(asked)) is not None:
        raise chats.ChatError("nothing_to_vary")
    return worker, asked, settings


def variant(
    worker_of: Callable[[str | None], Worker],
    chat: chats.Chat,
    step: int,
    spread: float,
    on_reply: ReplyCallback | None = None,
) -> chats.Chat:
    """Return the conversation with another variant of its last reply, of the same seed, settings and model.

    Args:
        worker_of: Function that returns the worker of a checkpoint name.
        chat: The conversation.
        step: Difference between the numbers of the new variant and of the one shown; below 0 the number is 0.
        spread: How far variants are from each other, cut to the range from 0 to `MAX_SPREAD`.
        on_reply: Function to call when the reply has ended.

    Raises:
        XianliaoError: The conversation does not end with a complete reply of the model, it cannot be answered, or the
            number is larger than `MAX_VARIATION`.
    """
    worker, asked, settings = asked_again(worker_of, chat)
    number = max(0, chats.number_of(chat["messages"][-1]) + step)
    if number > MAX_VARIATION:
        raise chats.ChatError("no_more_ways", count=MAX_VARIATION)
    spread = min(MAX_SPREAD, max(0.0, spread))
    assert settings.seed is not None
    _, message = variant_of(worker, asked, settings, settings.seed, number, spread, on_reply)
    return chats.with_message(asked, signed(asked, message))

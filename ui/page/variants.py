"""Other ways to say a reply, on the page: the server's part."""

from __future__ import annotations

from collections.abc import Callable

from chatbot.chat.variants import MAX_SPREAD, MAX_VARIATION
from chatbot.chat.worker import Worker
from ui.page import chats
from ui.page.handlers import PageSettings, ReplyCallback, signed


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
        step: Difference between the numbers of the new variant and of the one shown; the first and the last number are
            not passed.
        spread: How far variants are from each other.
        on_reply: Function to call when the reply has ended.

    Raises:
        XianliaoError: The conversation does not end with a complete reply of the model, or it cannot be answered.
    """
    *before, last = chat["messages"] or [{"role": "divider", "text": ""}]
    asked: chats.Chat = {**chat, "messages": before}
    if "seed" not in last or not chats.ends_with_user(asked):
        raise chats.ChatError("nothing_to_vary")
    settings = PageSettings.from_fields(last["seed"], last.get("temperature"), last.get("top_p"))
    worker, turns = worker_of(last.get("model")), chats.turns_of(asked)
    if settings.seed is None or worker.fixed_answer(turns) is not None:
        raise chats.ChatError("nothing_to_vary")
    number = min(MAX_VARIATION, max(0, chats.number_of(last) + step))
    spread = min(MAX_SPREAD, max(0.0, spread))
    *_, reply = worker.stream_replies(turns, settings.seed, variation=number, spread=spread, **settings.changes)
    if on_reply is not None:
        on_reply(worker.bot.name, reply, None, chat["id"], turns[-1])
    message = settings.message(reply.text, reply.seed, worker.bot.name)
    if number:
        message |= {"variation": number, "spread": spread}
    return chats.with_message(asked, signed(asked, message))

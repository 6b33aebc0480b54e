"""Other ways to say a reply, on the page: 换个说法, ‹ 2/4 › through the variants, and how far they are from each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from chatbot.chat.variants import MAX_SPREAD, MAX_VARIATION
from chatbot.chat.worker import Worker
from ui.page import chats
from ui.page.actions import Actions, _language, _sender, _size, notices
from ui.page.handlers import PageSettings, ReplyCallback, signed, view_of
from ui.server.work import SENDER


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


def add_variants(chat: gr.JSON, view: gr.Chatbot, actions: Actions, i18n: gr.I18n, **event: Any) -> list[Any]:
    """Add the controls to the page and return their events, after which the browser saves the conversation.

    Args:
        chat: The conversation.
        view: Its messages.
        actions: Workers and threads of the page.
        i18n: Texts in all languages.
        **event: Options of the events.
    """
    with gr.Row(elem_id="variants"):
        back = gr.Button("‹", size="sm", elem_id="variant-back", min_width=40, scale=0)
        place = gr.Markdown(elem_id="variant-place")
        following = gr.Button(i18n("another"), size="sm", elem_id="another", min_width=80)
        spread = gr.Slider(0, MAX_SPREAD, 1, step=0.1, label=i18n("near_far"), elem_id="spread", min_width=120)
    walked = gr.JSON({}, visible=False)

    def stepping(step: int) -> Callable[..., tuple[Any, ...]]:
        def change(value: Any, spread: Any, walked: Any, request: gr.Request) -> tuple[Any, ...]:
            SENDER.set(_sender(request))
            language = _language(request)
            with notices(language):
                checked = actions.pool.run(_size([value]), chats.checked, value)
                far = float(spread) if isinstance(spread, (int, float)) and spread == spread else 1.0
                changed = variant(actions.worker, checked, step, far, actions.on_reply)
                most = most_shown(walked, changed["messages"][-1])
                shown = f"{chats.number_of(changed['messages'][-1]) + 1}/{most['most'] + 1}"
                return changed, view_of(changed, language), shown, most

        return change

    inputs, outputs = [chat, spread, walked], [chat, view, place, walked]
    return [button.click(stepping(step), inputs, outputs, **event) for button, step in ((back, -1), (following, 1))]


def most_shown(walked: Any, message: chats.ChatMessage) -> dict[str, Any]:
    """Return the largest number of a variant that was shown of this reply's seed; `walked` is the former result."""
    seed, number = message.get("seed"), chats.number_of(message)
    before = walked.get("most") if isinstance(walked, dict) and walked.get("seed") == seed else 0
    return {"seed": seed, "most": max(number, min(MAX_VARIATION, before if isinstance(before, int) else 0))}

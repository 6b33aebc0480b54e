"""How a reply was chosen: its steps, and the form in which the page's script draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from chatbot.chat.trace import TracedStep
from chatbot.chat.worker import Worker
from ui.page.chats import Chat, ChatError, ends_with_user, number_of, turns_of
from ui.page.handlers import PageSettings


class ShownStep(TypedDict):
    """Choice of one token; the end of the turn is the empty text. See `TracedStep` for the probabilities.

    Attributes:
        token: Text of the chosen token.
        p: Its probability.
        count: Number of candidates after truncation.
        end: Probabilities of the end: before truncation, as drawn, and the least one.
        candidates: Most likely candidates and the chosen one, text and probability.
        chosen: Index of the chosen token among them.
    """

    token: str
    p: float
    count: int
    end: list[float]
    candidates: list[tuple[str, float]]
    chosen: int


def shown_steps(steps: Sequence[TracedStep]) -> list[ShownStep]:
    """Return the steps of a reply as plain values.

    Args:
        steps: Steps of the reply.
    """
    return [shown_step(step) for step in steps]


def shown_step(step: TracedStep) -> ShownStep:
    """Return a step with the chosen token among the candidates: last if it is not one of the most likely ones.

    Several tokens that are parts of a character have the same text; the probability tells them apart.
    """
    candidates = list(step.likeliest)
    distances = {at: abs(p - step.probability) for at, (token, p) in enumerate(candidates) if token == step.token}
    chosen = min(distances, key=lambda at: distances[at], default=len(candidates))
    if not distances or ("\ufffd" in step.token and distances[chosen] > 1e-6):
        chosen = len(candidates)
        candidates.append((step.token, step.probability))
    return {
        "token": step.token,
        "p": step.probability,
        "count": step.count,
        "end": [step.end, step.end_kept, step.floor],
        "candidates": candidates,
        "chosen": chosen,
    }


def trace_reply(worker_of: Callable[[str | None], Worker], chat: Chat, index: int) -> list[TracedStep]:
    """Return the steps in which a model chose the tokens of its reply.

    Args:
        worker_of: Function that returns the worker of a checkpoint name.
        chat: The conversation.
        index: Index of the reply among its messages.

    Raises:
        XianliaoError: The message is not a complete reply of the model.
    """
    messages = chat["messages"]
    reply = messages[index] if 0 <= index < len(messages) else None
    before: Chat = {**chat, "messages": messages[:index]}
    if reply is None or "seed" not in reply or not ends_with_user(before):
        raise ChatError("nothing_to_look_at")
    settings = PageSettings.from_fields(reply["seed"], reply.get("temperature"), reply.get("top_p"))
    worker = worker_of(reply.get("model"))
    turns = turns_of(before)
    if settings.seed is None or worker.fixed_answer(turns) is not None:
        raise ChatError("nothing_to_look_at")
    variant: dict[str, Any] = {"variation": number_of(reply), "spread": reply.get("spread", 1.0)}
    if "point" in reply:
        variant = {"point": reply["point"]}
    return list(worker.trace(turns, settings.seed, **settings.changes(worker.bot, chat), **variant))

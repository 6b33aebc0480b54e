"""Steps of a reply in the form in which the page's script draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from chatbot.chat.trace import TracedStep


class ShownStep(TypedDict):
    """Choice of one token; the end of the turn is the empty text. See `TracedStep` for the probabilities."""

    token: str
    p: float
    count: int
    end: list[float]
    candidates: list[tuple[str, float]]


def shown_steps(steps: Sequence[TracedStep]) -> list[ShownStep]:
    """Return the steps of a reply as plain values.

    Args:
        steps: Steps of the reply.

    Returns:
        For each step its candidates, most probable first. The chosen token is always among them: if it is not one of the
        most probable ones, it comes last. `end` has the probabilities of the end before truncation, as drawn, and at least.
    """
    return [
        {
            "token": step.token,
            "p": step.probability,
            "count": step.count,
            "end": [step.end, step.end_kept, step.floor],
            "candidates": candidates_of(step),
        }
        for step in steps
    ]


def candidates_of(step: TracedStep) -> list[tuple[str, float]]:
    """Return the listed candidates of a step and the chosen token."""
    listed = list(step.kept)
    if step.token not in (token for token, _ in listed):
        listed.append((step.token, step.probability))
    return listed

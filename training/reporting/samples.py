"""Sample replies of a run: the messages, and the replies that the training changed most; needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from chatbot.language.translation import translate
from chatbot.similarity.difference import difference

PROMPTS = (["你好"], ["今天好累啊"], ["你喜欢吃什么"], ["你是谁"], ["周末去哪玩", "还没想好", "一起看电影吧"])
"""Histories that a run without validation dialogues answers."""
MAX_MESSAGES = 6
"""Number of messages of the validation dialogues that are answered at every validation."""
MAX_SHOWN = 3
"""Number of replies that are shown after a run."""


@dataclass(frozen=True)
class SampleMessage:
    """History that the bot answers at every validation, and the reply of the person, if it is known."""

    prompt: list[str]
    reference: str | None = None


def sample_messages(dialogues: Iterable[Sequence[str]], limit: int) -> list[SampleMessage]:
    """Return the first messages of dialogues with the person's replies, each message once; the same for the same dialogues.

    Args:
        dialogues: Turns of each dialogue.
        limit: Maximum number of messages, evenly spread over the dialogues.
    """
    replies: dict[str, str] = {}
    for turns in dialogues:
        if len(turns) > 1 and turns[0].strip() and turns[1].strip():
            replies.setdefault(turns[0], turns[1])
    messages = [SampleMessage([message], reply) for message, reply in replies.items()]
    count = min(limit, len(messages))
    return [messages[number * len(messages) // count] for number in range(count)]


def last_replies(entries: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the last reply to each prompt in the entries of samples.jsonl."""
    return {prompt_text(entry["prompt"]): entry["reply"] for entry in entries}


def prompt_text(prompt: Sequence[str]) -> str:
    """Return a history as one text."""
    return "\n".join(prompt)


def describe_change(step: int, before: dict[str, str], now: dict[str, str]) -> str:
    """Return a line for the log: the reply that has changed most since the last validation.

    Args:
        step: Number of the step.
        before: Replies of the last validation by prompt; empty at the first one.
        now: Replies of this validation by prompt.
    """
    changed = {prompt: difference(before.get(prompt, ""), reply) for prompt, reply in now.items()}
    prompt = max(changed, key=changed.__getitem__) if before else next(iter(now))
    if before and not changed[prompt]:
        return translate(f"step {step}: the {len(now)} sample replies have not changed")
    return translate(f"step {step}: {prompt.splitlines()[-1]} -> {now[prompt]}")


def summary_of_samples(entries: Sequence[dict[str, Any]], step: int) -> list[str]:
    """Return lines with the replies of a step that differ most from those before the training, or the first ones.

    Args:
        entries: Entries of samples.jsonl.
        step: Step of the checkpoint.
    """
    after = [entry for entry in entries if entry["step"] == step]
    before = {prompt_text(entry["prompt"]): entry["reply"] for entry in entries if entry["step"] == 0} if step else {}
    compared = [entry for entry in after if prompt_text(entry["prompt"]) in before]
    if not compared:
        return [line for entry in after[:MAX_SHOWN] for line in _lines(entry, None)]
    ranked = sorted(compared, key=lambda entry: -difference(before[prompt_text(entry["prompt"])], entry["reply"]))
    changed = [entry for entry in ranked if entry["reply"] != before[prompt_text(entry["prompt"])]]
    if not changed:
        return [translate(f"samples: the training changed none of the {len(compared)} replies")]
    lines = [translate(f"samples: the training changed {len(changed)} of the {len(compared)} replies; most of all:")]
    return lines + [
        line for entry in changed[:MAX_SHOWN] for line in _lines(entry, before[prompt_text(entry["prompt"])])
    ]


def _lines(entry: dict[str, Any], before: str | None) -> list[str]:
    lines = [f"  {entry['prompt'][-1]}"]
    if before is not None:
        lines.append(translate(f"    before: {before}"))
    lines.append(translate(f"    after: {entry['reply']}"))
    if entry.get("reference"):
        lines.append(translate(f"    person: {entry['reference']}"))
    return lines

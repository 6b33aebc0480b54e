"""The grid: the same contexts answered with different decoding methods."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.bot import Chatbot
from chatbot.dialogue import clean_turn
from chatbot.evaluation import metrics
from chatbot.generate import decode, prefill
from chatbot.next_token import Draft
from chatbot.reply_settings import ReplySettings

BATCH = 32
EXAMPLES = 8


@dataclass(frozen=True)
class Context:
    """A history and what a person answered to it."""

    turns: tuple[str, ...]
    reference: str


def methods(bot: Chatbot, plain_limit: int) -> dict[str, ReplySettings]:
    """The compared methods: plain decoding is cut off at `plain_limit` tokens, ours ends by itself."""
    ours = bot.settings
    plain = {"keep_eos": False, "floor_start_tokens": None, "max_reply_tokens": plain_limit}
    sampling = {"temperature": ours.temperature, "top_p": ours.top_p, "top_k": ours.top_k}
    return {
        "greedy": bot.within_limits(ReplySettings(method="greedy", **plain)),
        "nucleus": bot.within_limits(ReplySettings(**sampling, **plain)),
        "greedy + floor": ours.with_changes(method="greedy"),
        "nucleus + floor (default)": ours,
    }


def make_contexts(dialogues: Sequence[Sequence[str]], count: int) -> list[Context]:
    """One context a dialogue: everything before its last turn; evenly spread when there are more than `count`."""
    usable = [turns for turns in dialogues if len(turns) > 1 and all(clean_turn(turn) for turn in turns)]
    stride = max(1, len(usable) / count)
    chosen = [usable[int(i * stride)] for i in range(min(count, len(usable)))]
    return [Context(tuple(turns[:-1]), clean_turn(turns[-1])) for turns in chosen]


def answer(bot: Chatbot, contexts: Sequence[Context], settings: ReplySettings, seed: int) -> tuple[list[Draft], float]:
    """Replies to all contexts, batched, context i with seed `seed + i`, and the seconds it took."""
    prompts = [
        bot.layout.prompt([bot.tokenizer.encode(clean_turn(turn)) for turn in context.turns], bot.context_tokens)
        for context in contexts
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids))
    drafts: list[Draft] = [Draft()] * len(prompts)
    started = time.perf_counter()
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        steps, logits = prefill(bot.model, [prompts[i] for i in rows])
        speakers = [prompts[i].reply_speaker for i in rows]
        result: list[Draft] = []
        for result in decode(steps, logits, speakers, settings, bot.vocabulary, [seed + i for i in rows]):  # noqa: B007
            pass
        for i, draft in zip(rows, result, strict=True):
            drafts[i] = draft
    return drafts, time.perf_counter() - started


def measure(bot: Chatbot, contexts: Sequence[Context], drafts: Sequence[Draft], limit: int) -> dict:
    """Numbers of one method's replies, and the first examples."""
    texts = [bot.tokenizer.decode_complete(draft.token_ids).strip() for draft in drafts]
    lengths = [len(draft.token_ids) for draft in drafts]
    reasons = [draft.stop_reason for draft in drafts]
    return {
        "replies": len(drafts),
        "dist_1": metrics.distinct_n(texts, 1),
        "dist_2": metrics.distinct_n(texts, 2),
        "ent_4": metrics.entropy_n(texts, 4),
        "repetitive": metrics.mean(map(metrics.is_repetitive, texts)),
        "echo": metrics.mean(
            metrics.is_echo(text, clean_turn(context.turns[-1])) for text, context in zip(texts, contexts, strict=True)
        ),
        "rep_4": metrics.mean(metrics.repetition_n(text, 4) for text in texts),
        f"r_{limit}": metrics.unfinished_share(lengths, [reason != "limit" for reason in reasons], limit),
        "longest_tokens": max(lengths, default=0),
        "mean_characters": metrics.mean(map(len, texts)),
        "reference_mean_characters": metrics.mean(len(context.reference) for context in contexts),
        "stop_reasons": {reason: reasons.count(reason) for reason in ("eos", "floor", "limit")},
        "examples": [
            {"context": list(context.turns), "reference": context.reference, "reply": text, "stop_reason": reason}
            for context, text, reason in list(zip(contexts, texts, reasons, strict=True))[:EXAMPLES]
        ],
    }

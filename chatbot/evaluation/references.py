"""Cost of decoding rules on the replies that people gave.

Rules against repetition, banned words, the EOS floor and length limits change the model's probabilities. What they add
to the nats of human replies shows what they do to good replies. Temperature and truncation are left out: they are meant
to change probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.candidates import next_candidates
from chatbot.decoding.loop import prefill
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation import answering
from chatbot.evaluation.answering import Context, EncodedContext
from chatbot.evaluation.cache import ResultCache, identity_of

MODEL_ALONE = ""
"""Key of the nats under the model without any rule."""


def reference_nats(
    bot: Chatbot, contexts: Sequence[Context], methods: dict[str, ReplySettings], cache: ResultCache
) -> dict[str, list[float]]:
    """Return the nats of every reference under the rules of each method and under the model alone.

    Args:
        bot: The bot.
        contexts: Contexts with their references.
        methods: Settings by name.
        cache: Cache of this report.

    Returns:
        By name of the method and by `MODEL_ALONE`: nats of each reference and its EOS; infinite if it is forbidden.
    """
    alone = _without_rules(bot.settings)
    settings_of = {MODEL_ALONE: alone}
    for name, settings in methods.items():
        settings_of[name] = _rules_only(alone, settings)
    kinds = list(dict.fromkeys(settings_of.values()))  # methods that differ in sampling alone are scored once
    identity = {
        "bot": identity_of(bot),
        "contexts": [asdict(context) for context in contexts],
        "batch": answering.BATCH_SIZE,
        "kinds": [asdict(kind) for kind in kinds],
    }
    file = cache.open(f"{bot.name}-references", identity)
    encoded, batches = answering.in_batches(bot, contexts)
    for indices in batches[len(file.rows) :]:
        nats = _score_batch(bot, [encoded[i] for i in indices], kinds)
        file.add({"contexts": indices, "nats": [[None if math.isinf(x) else x for x in row] for row in nats]})
    result = {name: [0.0] * len(contexts) for name in settings_of}
    for row in file.rows:
        for name, kind in settings_of.items():
            for index, value in zip(row["contexts"], row["nats"][kinds.index(kind)], strict=True):
                result[name][index] = math.inf if value is None else value
    return result


def _without_rules(settings: ReplySettings) -> ReplySettings:
    """Return settings without rules, floor and limits; EOS is not allowed first, because no reference is empty."""
    return replace(
        settings,
        repetition_penalty=1.0,
        no_repeat_ngram=0,
        repeat_cost=None,
        banned_words=(),
        candidates=1,
        floor_start_tokens=None,
        max_reply_tokens=10**6,
        min_reply_tokens=1,
    )


def _rules_only(alone: ReplySettings, settings: ReplySettings) -> ReplySettings:
    """Return `alone` with the settings of a method that change probabilities or forbid a reply."""
    return replace(
        alone,
        repetition_penalty=settings.repetition_penalty,
        no_repeat_ngram=settings.no_repeat_ngram,
        repeat_cost=settings.repeat_cost,
        banned_words=settings.banned_words,
        min_reply_tokens=settings.min_reply_tokens,
        floor_start_tokens=settings.floor_start_tokens,
        floor_delta_tokens=settings.floor_delta_tokens,
    )


@torch.inference_mode()
def _score_batch(bot: Chatbot, batch: Sequence[EncodedContext], kinds: Sequence[ReplySettings]) -> list[list[float]]:
    """Return the nats of the references of a batch under each kind of settings, `[kinds][B]`."""
    end_id = bot.vocabulary.end_id
    targets = [[*context.reference, end_id] for context in batch]
    steps, logits = prefill(bot.model, [context.prompt for context in batch])
    active = list(range(len(batch)))  # references that have not ended; row r of the logits belongs to active[r]
    nats = [[0.0] * len(batch) for _ in kinds]
    for position in range(max(map(len, targets))):
        replies = [targets[i][:position] for i in active]
        next_ids = [targets[i][position] for i in active]
        earlier = [batch[i].answered.earlier_replies for i in active]
        for kind, sums in zip(kinds, nats, strict=True):
            log_probs = _target_log_probs(bot, logits, kind, replies, earlier, next_ids)
            for i, log_prob in zip(active, log_probs, strict=True):
                sums[i] -= log_prob
        rows = [row for row, i in enumerate(active) if position + 1 < len(targets[i])]
        if not rows:
            break
        if len(rows) < len(active):
            steps.select(torch.tensor(rows, device=logits.device))
            active, next_ids = [active[row] for row in rows], [next_ids[row] for row in rows]
        speakers = torch.tensor([batch[i].prompt.reply_speaker for i in active], device=logits.device)
        logits = steps(torch.tensor(next_ids, device=logits.device), speakers)
    return nats


def _target_log_probs(
    bot: Chatbot,
    logits: torch.Tensor,
    kind: ReplySettings,
    replies: Sequence[Sequence[int]],
    earlier: Sequence[Sequence[Sequence[int]]],
    next_ids: Sequence[int],
) -> list[float]:
    """Return log p of the next tokens under some settings; at the length limit EOS has probability 1."""
    end_id = bot.vocabulary.end_id
    if len(replies[0]) >= kind.limit_tokens:
        return [0.0 if token == end_id else -math.inf for token in next_ids]
    candidates = next_candidates(logits, kind, bot.vocabulary, replies, earlier)
    log_p = candidates.ruled.log_softmax(-1)
    if candidates.floor is not None:
        log_p = candidates.floor.apply(log_p, candidates.emitted, end_id)
    return log_p.gather(1, torch.tensor(next_ids, device=log_p.device)[:, None])[:, 0].tolist()

"""Cost of decoding rules on the replies that people gave.

Rules against repetition, banned words, the EOS floor and length limits change the model's probabilities. The nats that
these rules add to human replies show how much the rules hurt good replies. Temperature and truncation are left out:
they are meant to change probabilities.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from tqdm import tqdm

from chatbot.chat.bot import Chatbot
from chatbot.decoding.candidates import Candidates
from chatbot.decoding.loop import ForcedReply, prefill, run
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation import answering
from chatbot.evaluation.answering import Context, EncodedContext
from chatbot.evaluation.cache import ResultCache, identity_of
from chatbot.language.translation import translate

MODEL_ALONE = ""
"""Key of the nats of the model without any rule."""

RULES = (
    *("repetition_penalty", "no_repeat_ngram", "repeat_cost", "dry_multiplier", "dry_base", "dry_allowed_length"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "banned_words", "min_reply_tokens"),
    *("floor_start_tokens", "floor_delta_tokens"),
)
"""Settings that change probabilities or forbid a reply, apart from sampling."""


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
        Keys are the names of the methods and `MODEL_ALONE`; values are the nats of each reference with its EOS,
        infinite if a rule forbids the reference.
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
    name = translate(f"{bot.name}: scoring people's replies")
    for indices in tqdm(batches[len(file.rows) :], desc=name, file=sys.stderr, mininterval=1):
        nats = _score_batch(bot, [encoded[i] for i in indices], kinds)
        file.add({"contexts": indices, "nats": [[None if math.isinf(x) else x for x in row] for row in nats]})
    result = {name: [0.0] * len(contexts) for name in settings_of}
    for row in file.rows:
        for name, kind in settings_of.items():
            for index, value in zip(row["contexts"], row["nats"][kinds.index(kind)], strict=True):
                result[name][index] = math.inf if value is None else value
    return result


def _without_rules(settings: ReplySettings) -> ReplySettings:
    """Return settings without rules, floor and limits; the first token is never EOS, as no reference is empty."""
    return replace(
        settings,
        repetition_penalty=1.0,
        no_repeat_ngram=0,
        repeat_cost=None,
        dry_multiplier=0.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        logit_bias=(),
        banned_words=(),
        candidates=1,
        floor_start_tokens=None,
        max_reply_tokens=10**6,
        min_reply_tokens=1,
    )


def _rules_only(alone: ReplySettings, settings: ReplySettings) -> ReplySettings:
    """Return `alone` with the settings of a method that change probabilities or forbid a reply."""
    return replace(alone, **{name: getattr(settings, name) for name in RULES})


@torch.inference_mode()
def _score_batch(bot: Chatbot, batch: Sequence[EncodedContext], kinds: Sequence[ReplySettings]) -> list[list[float]]:
    """Return the nats of the references of a batch under each kind of settings, `[kinds][B]`."""
    steps, logits = prefill(bot.model, [context.prompt for context in batch])
    nats = [[0.0] * len(batch) for _ in kinds]

    def watch(index: int, candidates: Candidates, replies: Sequence[ForcedReply]) -> None:
        for reply, log_prob in zip(replies, _target_log_probs(candidates, kinds[index], replies), strict=True):
            nats[index][number_of[reply]] -= log_prob

    references = [
        ForcedReply(
            [*context.reference, bot.vocabulary.end_id],
            tuple(kinds),
            watch,
            context.answered.earlier_replies,
            context.prompt.reply_speaker,
        )
        for context in batch
    ]
    number_of = {reply: number for number, reply in enumerate(references)}
    for _ in run(steps, logits, references, bot.vocabulary):
        pass
    return nats


def _target_log_probs(candidates: Candidates, kind: ReplySettings, replies: Sequence[ForcedReply]) -> list[float]:
    """Return log p of the references' next tokens under some settings; an end forced at the length limit has log p 0."""
    end_id = replies[0].tokens[-1]
    log_p = candidates.ruled.log_softmax(-1)
    if candidates.floor is not None:
        log_p = candidates.floor.apply(log_p, candidates.emitted, end_id)
    targets = [reply.tokens[reply.position] for reply in replies]
    log_probs = log_p.gather(1, torch.tensor(targets, device=log_p.device)[:, None])[:, 0].tolist()
    return [
        log_prob if reply.position < kind.limit_tokens else (0.0 if target == end_id else -math.inf)
        for reply, target, log_prob in zip(replies, targets, log_probs, strict=True)
    ]

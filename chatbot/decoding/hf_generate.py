"""Decoding rules as logits processors for `generate()` of transformers, in the order that keeps the length bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
)

from chatbot.decoding.rules.banned_words import BannedWords
from chatbot.decoding.rules.eos_floor import EosFloor
from chatbot.decoding.rules.penalties import Penalties, penalties
from chatbot.decoding.rules.readable import ReadableText
from chatbot.decoding.rules.repetition import Dry, RepetitionRules, repetition_rules
from chatbot.decoding.rules.truncation import truncation
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary

Earlier = Sequence[Sequence[int]] | Callable[[list[int]], Sequence[Sequence[int]]]
"""Replies before the one that is generated, or a function that finds them in a prompt."""


class EosFloorProcessor(LogitsProcessor):
    """EOS floor and hard limit for `generate()` of transformers.

    Put this processor into a list after temperature and before truncation (`reply_processors` builds the list), and
    call `generate()` with temperature=1, top_p=1, top_k=0. The temperature and truncation of transformers would run
    after the custom processors and could break the length bound.
    """

    def __init__(self, floor: EosFloor | None, eos_id: int, prompt_tokens: int, limit_tokens: int):
        self.floor, self.eos_id, self.prompt_tokens, self.limit_tokens = floor, eos_id, prompt_tokens, limit_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        emitted = input_ids.shape[1] - self.prompt_tokens
        if emitted >= self.limit_tokens:
            forced = torch.full_like(scores, -math.inf)
            forced[:, self.eos_id] = 0.0
            return forced
        log_probs = scores.log_softmax(-1)
        return log_probs if self.floor is None else self.floor.apply(log_probs, emitted, self.eos_id)


class RepetitionProcessor(LogitsProcessor):
    """A rule against repetition for `generate()` of transformers; it applies to the reply and `earlier` only."""

    def __init__(self, rules: RepetitionRules | Dry, prompt_tokens: int, earlier: Earlier = ()):
        self.rules, self.prompt_tokens, self.earlier = rules, prompt_tokens, earlier

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        prompts, replies = input_ids[:, : self.prompt_tokens].tolist(), input_ids[:, self.prompt_tokens :].tolist()
        find = self.earlier
        self.rules.apply(scores, replies, [find(prompt) if callable(find) else find for prompt in prompts])
        return scores


class ReplyProcessor(LogitsProcessor):
    """A rule that depends on the reply alone, for `generate()` of transformers; the prompt does not count."""

    def __init__(self, rule: BannedWords | ReadableText | Penalties, prompt_tokens: int):
        self.rule, self.prompt_tokens = rule, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        self.rule.apply(scores, input_ids[:, self.prompt_tokens :].tolist())
        return scores


def reply_processors(
    settings: ReplySettings, vocabulary: Vocabulary, prompt_tokens: int, earlier: Earlier = ()
) -> LogitsProcessorList:
    """Return our decoding rules for `generate(logits_processor=…, temperature=1, top_p=1, top_k=0)`.

    With `do_sample=False` the list gives the same reply as `chatbot.decoding.loop.decode`.

    Args:
        settings: Decoding settings.
        vocabulary: Properties of the tokens.
        prompt_tokens: Number of tokens of the prompt.
        earlier: Token ids of the bot's last replies, for the rules against repetition; or a function that finds them in
            the token ids of a prompt.
    """
    rules = LogitsProcessorList()
    if vocabulary.banned_ids:
        rules.append(SuppressTokensLogitsProcessor(list(vocabulary.banned_ids)))
    if settings.banned_words:
        rules.append(ReplyProcessor(vocabulary.ban(settings.banned_words), prompt_tokens))
    if vocabulary.readable is not None:
        rules.append(ReplyProcessor(vocabulary.readable, prompt_tokens))
    for rule in repetition_rules(settings, vocabulary.end_id):
        rules.append(RepetitionProcessor(rule, prompt_tokens, earlier))
    if settings.min_reply_tokens:
        minimum = settings.min_reply_tokens
        rules.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, minimum, vocabulary.end_id))
    if (active := penalties(settings)) is not None:
        rules.append(ReplyProcessor(active, prompt_tokens))
    if settings.method == "sample" and settings.temperature != 1:
        rules.append(TemperatureLogitsWarper(settings.temperature))
    rules.append(EosFloorProcessor(settings.floor, vocabulary.end_id, prompt_tokens, settings.limit_tokens))
    rules.extend(truncation(settings, vocabulary.end_id))
    return rules

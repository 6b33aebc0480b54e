"""Replies of every decoding method to the same contexts, decoded in batches."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from chatbot.chat.bot import Chatbot, Request
from chatbot.chat.request import answered_by, asked, decode_requests
from chatbot.decoding.batch import DialogueBatch
from chatbot.decoding.candidates import Draft
from chatbot.decoding.loop import prefill
from chatbot.decoding.rerank import Answered
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation.cache import CacheFile, ResultCache, identity_of, identity_of_ranker
from chatbot.language.translation import translate
from chatbot.text.dialogue import Prompt, clean_turn

BATCH_SIZE = 64
"""Number of contexts that the model reads together."""


@dataclass(frozen=True)
class Context:
    """A history and the reply that a person gave to it.

    Attributes:
        turns: The history, oldest turn first.
        reference: The person's reply.
    """

    turns: tuple[str, ...]
    reference: str


@dataclass(frozen=True)
class EncodedContext:
    """A context in token ids.

    Attributes:
        prompt: The history as the model reads it; old turns are dropped if it is too long.
        answered: Token ids of the history and of the bot's last replies.
        reference: Token ids of the person's reply, without EOS.
    """

    prompt: Prompt
    answered: Answered
    reference: list[int]


@dataclass(frozen=True)
class Answer:
    """Reply to a context.

    Attributes:
        token_ids: Tokens without EOS.
        stop_reason: See `chatbot.decoding.rules.eos_floor.StopReason`.
        log_prob: See `chatbot.decoding.candidates.Draft`.
    """

    token_ids: tuple[int, ...]
    stop_reason: str
    log_prob: float


@dataclass(frozen=True)
class DecodingCost:
    """Time and tokens that a method needed for all replies.

    Attributes:
        seconds: Wall-clock time, without the time to read the contexts.
        tokens: Tokens of all candidates, EOS included.
    """

    seconds: float
    tokens: int


def make_contexts(dialogues: Sequence[Sequence[str]], count: int) -> list[Context]:
    """Return one context per dialogue: all turns before the last one.

    Dialogues with fewer than two turns or with an empty turn are skipped. If more than `count` dialogues
    remain, evenly spaced ones are used.
    """
    usable = [turns for turns in dialogues if len(turns) > 1 and all(clean_turn(turn) for turn in turns)]
    stride = max(1, len(usable) / count)
    chosen = [usable[int(i * stride)] for i in range(min(count, len(usable)))]
    return [Context(tuple(turns[:-1]), clean_turn(turns[-1])) for turns in chosen]


def encode(bot: Chatbot, context: Context) -> EncodedContext:
    """Encode a context as a chat does, but without a limit on the last message."""
    ids = [bot.reader.ids(turn, bot.settings.script) for turn in context.turns]
    prompt = asked(bot.layout.prompt(ids, bot.context_tokens), bot.layout, bot.settings)
    return EncodedContext(prompt, answered_by(ids), bot.reader.ids(context.reference))


def in_batches(bot: Chatbot, contexts: Sequence[Context]) -> tuple[list[EncodedContext], list[list[int]]]:
    """Return the encoded contexts, and their indices grouped into batches of similar length."""
    encoded = [encode(bot, context) for context in contexts]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].prompt.input_ids))
    return encoded, [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]


@torch.inference_mode()
def answer_all(
    bot: Chatbot, contexts: Sequence[Context], methods: dict[str, ReplySettings], seed: int, cache: ResultCache
) -> tuple[dict[str, list[Answer]], dict[str, DecodingCost]]:
    """Return the answers of every method to every context, and their cost.

    Each batch of contexts is read once for all methods. Results in the cache are not computed again.

    Args:
        bot: The bot.
        contexts: Contexts to answer; context i is answered with seed `seed + i`.
        methods: Settings by name.
        seed: Seed of the first context.
        cache: Cache of this report.
    """
    files = _open_files(bot, contexts, methods, seed, cache)
    encoded, batches = in_batches(bot, contexts)
    text = translate(f"{bot.name}: answering")
    with tqdm(total=len(batches) * len(methods), desc=text, file=sys.stderr, mininterval=1) as bar:
        for number, indices in enumerate(batches):
            missing = [name for name in methods if len(files[name].rows) <= number]
            bar.update(len(methods) - len(missing))
            if not missing:
                continue
            batch = [encoded[i] for i in indices]
            steps, logits = prefill(bot.model, [context.prompt for context in batch])
            for name in missing:
                files[name].add(_answer_batch(bot, steps, logits, batch, indices, methods[name], seed))
                bar.update()
    answers = {name: _in_order(file, len(contexts)) for name, file in files.items()}
    costs = {
        name: DecodingCost(sum(row["seconds"] for row in file.rows), sum(row["tokens"] for row in file.rows))
        for name, file in files.items()
    }
    return answers, costs


def _open_files(
    bot: Chatbot, contexts: Sequence[Context], methods: dict[str, ReplySettings], seed: int, cache: ResultCache
) -> dict[str, CacheFile]:
    """Open a cache file for every decoding method. Each line of a file holds the answers of one batch."""
    common = {
        "bot": identity_of(bot),
        "contexts": [asdict(context) for context in contexts],
        "seed": seed,
        "batch": BATCH_SIZE,
    }
    files = {}
    for name, settings in methods.items():
        identity = {**common, "settings": asdict(settings), "ranker": identity_of_ranker(bot, settings)}
        files[name] = cache.open(f"{bot.name}-{name}", identity)
    return files


def _in_order(file: CacheFile, count: int) -> list[Answer]:
    """Return the answers of a cache file in the order of the contexts."""
    answers: dict[int, Answer] = {}
    for row in file.rows:
        columns = zip(row["contexts"], row["replies"], row["stops"], row["log_probs"], strict=True)
        for index, token_ids, stop_reason, log_prob in columns:
            answers[index] = Answer(tuple(token_ids), stop_reason, log_prob)
    return [answers[index] for index in range(count)]


def _answer_batch(
    bot: Chatbot,
    steps: DialogueBatch,
    logits: torch.Tensor,
    batch: Sequence[EncodedContext],
    indices: Sequence[int],
    settings: ReplySettings,
    seed: int,
) -> dict:
    """Answer one batch of contexts and return the row for the cache file.

    Args:
        bot: The bot.
        steps: State after the prompts; it is not changed.
        logits: Logits of the first reply token, `[B, V]`.
        batch: The B contexts.
        indices: Their indices among all contexts.
        settings: The method.
        seed: Seed of context 0.
    """
    started = time.perf_counter()
    width = max(1, BATCH_SIZE // max(settings.candidates, settings.beams if settings.method == "beam" else 1))
    decoded: list[tuple[list[Draft], int]] = []
    for start in range(0, len(batch), width):
        part = slice(start, start + width)
        rows = torch.arange(len(batch), device=logits.device)[part]
        part_steps = steps.clone()
        part_steps.select(rows)
        requests = [
            Request(context.prompt, context.answered, settings, seed + index, started)
            for context, index in zip(batch[part], indices[part], strict=True)
        ]
        *_, candidates = decode_requests(requests, part_steps, logits[rows], bot.vocabulary)
        best = bot.best_of([request.answered for request in requests], candidates, settings)
        decoded += zip(candidates, best, strict=True)
    chosen = [candidates[best] for candidates, best in decoded]
    thinking = bot.vocabulary.thinking if settings.thinks else None
    return {
        "contexts": list(indices),
        "replies": [draft.token_ids if thinking is None else thinking.segment(draft.token_ids) for draft in chosen],
        "stops": [draft.stop_reason for draft in chosen],
        "log_probs": [draft.log_prob for draft in chosen],
        "seconds": time.perf_counter() - started,
        "tokens": sum(len(draft.token_ids) + 1 for candidates, _ in decoded for draft in candidates),
    }

"""The same contexts answered with different decoding methods."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from tqdm import tqdm

from chatbot.chat.bot import REMEMBERED_REPLIES, Chatbot, candidate_seeds
from chatbot.decoding.batch import DialogueBatch
from chatbot.decoding.candidates import Draft, next_candidates
from chatbot.decoding.loop import decode, prefill, repeat_rows
from chatbot.decoding.rerank import Answered
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation.cache import Lines, Store, identity_of, identity_of_ranker
from chatbot.text.dialogue import Prompt, clean_turn

BATCH = 64


@dataclass(frozen=True)
class Context:
    """A history and what a person answered to it."""

    turns: tuple[str, ...]
    reference: str


@dataclass(frozen=True)
class Encoded:
    """A context as its model sees it: the prompt, and as ids the history, the bot's last replies and the reference."""

    prompt: Prompt
    answered: Answered
    reference: list[int]


@dataclass(frozen=True)
class Answer:
    """A reply to a context.

    Attributes:
        token_ids: EOS not included.
        stop_reason: See `chatbot.decoding.rules.eos_floor.StopReason`.
        log_prob: See `chatbot.decoding.candidates.Draft`.
    """

    token_ids: tuple[int, ...]
    stop_reason: str
    log_prob: float


@dataclass(frozen=True)
class Spent:
    """Wall time of a method's replies, reading the contexts not counted, and the tokens of all candidates and ends."""

    seconds: float
    tokens: int


def make_contexts(dialogues: Sequence[Sequence[str]], count: int) -> list[Context]:
    """One context a dialogue: everything before its last turn; evenly spread when there are more than `count`."""
    usable = [turns for turns in dialogues if len(turns) > 1 and all(clean_turn(turn) for turn in turns)]
    stride = max(1, len(usable) / count)
    chosen = [usable[int(i * stride)] for i in range(min(count, len(usable)))]
    return [Context(tuple(turns[:-1]), clean_turn(turns[-1])) for turns in chosen]


def encode(bot: Chatbot, context: Context) -> Encoded:
    """Nothing is too long: old turns are dropped as in a chat, a long message is read whole."""
    ids = [bot.tokenizer.encode(clean_turn(turn)) for turn in context.turns]
    answered = Answered(ids, ids[-2::-2][:REMEMBERED_REPLIES])
    return Encoded(bot.layout.prompt(ids, bot.context_tokens), answered, bot.tokenizer.encode(context.reference))


def in_batches(bot: Chatbot, contexts: Sequence[Context]) -> tuple[list[Encoded], list[list[int]]]:
    """The contexts encoded, and their places in batches of about equal length."""
    encoded = [encode(bot, context) for context in contexts]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].prompt.input_ids))
    return encoded, [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


@torch.inference_mode()
def answer_all(
    bot: Chatbot, contexts: Sequence[Context], methods: dict[str, ReplySettings], seed: int, store: Store
) -> tuple[dict[str, list[Answer]], dict[str, Spent]]:
    """Answers of every method to every context, context i with seed `seed + i`.

    Each batch of contexts is read once for all methods. What a former run has worked out is taken from the store.
    """
    base = {
        "bot": identity_of(bot),
        "contexts": [asdict(context) for context in contexts],
        "seed": seed,
        "batch": BATCH,
    }
    files = {}
    for name, settings in methods.items():
        identity = {**base, "settings": asdict(settings), "ranker": identity_of_ranker(bot, settings)}
        files[name] = store.open(f"{bot.name}-{name}", identity)
    encoded, batches = in_batches(bot, contexts)
    with tqdm(total=len(batches) * len(methods), desc=f"{bot.name}: answering", file=sys.stderr, mininterval=1) as bar:
        for number, rows in enumerate(batches):
            missing = [name for name in methods if len(files[name].rows) <= number]
            bar.update(len(methods) - len(missing))
            if not missing:
                continue
            steps, logits = prefill(bot.model, [encoded[i].prompt for i in rows])
            for name in missing:
                files[name].add(_batch(bot, steps, logits, [encoded[i] for i in rows], rows, methods[name], seed))
                bar.update()
    return {name: _in_order(lines, len(contexts)) for name, lines in files.items()}, {
        name: Spent(sum(row["seconds"] for row in lines.rows), sum(row["tokens"] for row in lines.rows))
        for name, lines in files.items()
    }


def _in_order(lines: Lines, count: int) -> list[Answer]:
    found: dict[int, Answer] = {}
    for row in lines.rows:
        parts = zip(row["contexts"], row["replies"], row["stops"], row["log_probs"], strict=True)
        found |= {index: Answer(tuple(ids), stop, log_prob) for index, ids, stop, log_prob in parts}
    return [found[index] for index in range(count)]


def _batch(
    bot: Chatbot,
    steps: DialogueBatch,
    logits: torch.Tensor,
    batch: Sequence[Encoded],
    rows: Sequence[int],
    settings: ReplySettings,
    seed: int,
) -> dict:
    """Answers to one batch of contexts, as a line of the store."""
    started = time.perf_counter()
    width = max(1, BATCH // max(settings.candidates, settings.beams if settings.method == "beam" else 1))
    drafts = []
    for start in range(0, len(batch), width):
        part = torch.arange(start, min(start + width, len(batch)), device=logits.device)
        own = steps.clone()
        own.select(part)
        seeds = [seed + row for row in rows[start : start + width]]
        drafts += choose(bot, own, logits[part], batch[start : start + width], settings, seeds)
    chosen = [candidates[place] for candidates, place in drafts]
    return {
        "contexts": list(rows),
        "replies": [draft.token_ids for draft in chosen],
        "stops": [draft.stop_reason for draft in chosen],
        "log_probs": [draft.log_prob for draft in chosen],
        "seconds": time.perf_counter() - started,
        "tokens": sum(len(draft.token_ids) + 1 for candidates, _ in drafts for draft in candidates),
    }


def choose(
    bot: Chatbot,
    steps: DialogueBatch,
    logits: torch.Tensor,
    batch: Sequence[Encoded],
    settings: ReplySettings,
    seeds: Sequence[int],
) -> list[tuple[list[Draft], int]]:
    """The candidates of every context and the place of the best: the replies that `Chatbot.respond` gives one by one."""
    count = settings.candidates
    logits = repeat_rows(steps, logits, count)
    speakers = [one.prompt.reply_speaker for one in batch for _ in range(count)]
    earlier = [one.answered.earlier_replies for one in batch for _ in range(count)]
    drawn = [each for seed in seeds for each in candidate_seeds(seed, count)]
    *_, drafts = decode(steps, logits, speakers, settings, bot.vocabulary, drawn, earlier)
    groups = [drafts[start : start + count] for start in range(0, len(drafts), count)]
    if count == 1:
        return [(group, 0) for group in groups]
    return list(zip(groups, bot.ranker(settings).best([one.answered for one in batch], groups, settings), strict=True))


MOVING = ("repetition_penalty", "no_repeat_ngram", "repeat_cost", "banned_words", "min_reply_tokens")
MOVING += ("floor_start_tokens", "floor_delta_tokens")
"""Settings that move probability, or forbid a reply."""

RULES = {"repetition_penalty": 1.0, "no_repeat_ngram": 0, "repeat_cost": None}
NO_FLOOR = {"floor_start_tokens": None, "max_reply_tokens": 10**6}


def reference_nats(
    bot: Chatbot, contexts: Sequence[Context], methods: dict[str, ReplySettings], seed: int, store: Store
) -> dict[str, list[float]]:
    """Nats of every reference under what each method makes of the model's distribution, and under the model itself.

    Rules against repetition, banned words, the floor and limits move probability; what that costs on replies that people
    gave is what they do to good replies. Temperature and truncation, which are meant to move it, are left out. No model is
    asked to give an empty reply, for no reference is one.

    Returns:
        By method, and under "" the model's own: nats of each reference with its end; infinite where it is forbidden.
    """
    plain = replace(bot.settings, **RULES, **NO_FLOOR, banned_words=(), candidates=1, min_reply_tokens=1)
    wanted = {"": plain}
    for name, settings in methods.items():
        wanted[name] = replace(plain, **{field: getattr(settings, field) for field in MOVING})
    kinds = list(dict.fromkeys(wanted.values()))
    base = {"bot": identity_of(bot), "contexts": [asdict(context) for context in contexts], "batch": BATCH}
    lines = store.open(f"{bot.name}-references", {**base, "kinds": [asdict(kind) for kind in kinds]})
    encoded, batches = in_batches(bot, contexts)
    for rows in batches[len(lines.rows) :]:
        nats = _forced(bot, [encoded[i] for i in rows], kinds)
        lines.add({"contexts": rows, "nats": [[None if x == float("inf") else x for x in kind] for kind in nats]})
    found = {name: [0.0] * len(contexts) for name in wanted}
    for row in lines.rows:
        for name, kind in wanted.items():
            for index, value in zip(row["contexts"], row["nats"][kinds.index(kind)], strict=True):
                found[name][index] = float("inf") if value is None else value
    return found


@torch.inference_mode()
def _forced(bot: Chatbot, batch: Sequence[Encoded], kinds: Sequence[ReplySettings]) -> list[list[float]]:
    """Nats of the references of a batch under each kind of settings, token by token."""
    end_id = bot.vocabulary.end_id
    steps, logits = prefill(bot.model, [one.prompt for one in batch])
    alive = list(range(len(batch)))
    nats = [[0.0] * len(batch) for _ in kinds]
    for emitted in range(max(len(one.reference) for one in batch) + 1):
        said = [batch[i].reference[:emitted] for i in alive]
        targets = [batch[i].reference[emitted] if emitted < len(batch[i].reference) else end_id for i in alive]
        earlier = [batch[i].answered.earlier_replies for i in alive]
        for kind, sums in zip(kinds, nats, strict=True):
            found = next_candidates(logits, kind, bot.vocabulary, said, earlier)
            log_p = found.ruled.log_softmax(-1)
            if found.floor is not None:
                log_p = found.floor.apply(log_p, found.emitted, end_id)
            values = log_p.gather(1, torch.tensor(targets, device=log_p.device)[:, None])[:, 0].tolist()
            if emitted >= kind.limit_tokens:  # the end is forced
                values = [0.0 if target == end_id else -float("inf") for target in targets]
            for i, value in zip(alive, values, strict=True):
                sums[i] -= value
        going = [place for place, i in enumerate(alive) if emitted < len(batch[i].reference)]
        if not going:
            break
        if len(going) < len(alive):
            steps.select(torch.tensor(going, device=logits.device))
            alive, targets = [alive[place] for place in going], [targets[place] for place in going]
        speakers = torch.tensor([batch[i].prompt.reply_speaker for i in alive], device=logits.device)
        logits = steps(torch.tensor(targets, device=logits.device), speakers)
    return nats

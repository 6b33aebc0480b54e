"""Any model decodes many conversations in one batch: each gets its own reply, and none waits for another's history.

In fp32 on the CPU the tokens are those alone. Logits differ by the rounding of matrix products of other sizes: at most
2.9e-5 where logits reach 5 to 13, measured by `test_logits_in_slots_are_those_alone` on all models of `recorded.py`.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from chatbot.chat.batches import SharedBatch
from chatbot.chat.bot import Chatbot
from chatbot.chat.jobs import Job
from chatbot.decoding.batch import start_slots
from chatbot.decoding.candidates import GenerationError
from chatbot.decoding.torch_batch import TorchBatch, TorchSlots
from chatbot.model.slots import table
from tests.chatbot.decoding import recorded

NAMES = [name for name in recorded.NAMES if "compiled" not in name]
TEXTS = [turn for history in recorded.HISTORIES for turn in history]
WAYS = [{}, {}, {"temperature": 1.3}, {"method": "greedy"}, {"method": "beam", "beams": 3}, {"candidates": 3}]
SHORT = {"floor_start_tokens": 4, "floor_delta_tokens": 2}


@cache
def built(name: str) -> Chatbot:
    return recorded.build(name, Path(mkdtemp()))


@pytest.fixture(params=NAMES)
def bot(request) -> Chatbot:
    """A bot without cached states."""
    bot = built(request.param)
    bot.snapshots.clear()
    return bot


@pytest.fixture
def softmax() -> Chatbot:
    bot = built("softmax")
    bot.snapshots.clear()
    return bot


def start(batch: SharedBatch, turns: list[str], seed: int, **changes) -> tuple[Job, list]:
    """Let a reply enter the batch; return its job and the list that gets what is delivered."""
    delivered: list = []
    job = Job(batch.bot.request(turns, seed, **changes), delivered.append)
    batch.enter(job)
    return job, delivered


@torch.inference_mode()
def steps(batch: SharedBatch, count: int = 10**6) -> None:
    """Advance the batch, at most until it is empty."""
    while len(batch) and count:
        for job in batch.step():
            job.show(batch.bot)
        count -= 1


@torch.inference_mode()
def poison(pool: TorchSlots, row: int) -> None:
    """Write NaN into the state in a row of a pool."""
    for layer, growing in zip(pool.table.layers, pool.table.growing, strict=True):
        for name, tensor in layer.items():
            if tensor.dtype.is_floating_point:
                (tensor[row, : pool.table.lengths[row]] if name in growing else tensor[row]).fill_(torch.nan)


def test_64_conversations_that_come_and_go_get_the_replies_they_get_alone(bot):
    draw, batch = random.Random(0), SharedBatch(bot, prompt_tokens=24)
    started = []
    while len(started) < 64 or len(batch):
        for _ in range(min(64 - len(started), draw.choice([0, 1, 2, 8]))):
            turns = draw.choices(TEXTS, k=draw.choice([1, 1, 1, 3, 5]))
            changes = {**SHORT, **draw.choice(WAYS)}
            started.append((turns, len(started), changes, *start(batch, turns, len(started), **changes)))
        if draw.random() < 0.1:
            draw.choice(started)[3].cancel() if started else None
            batch.drop_cancelled()
        steps(batch, 1)
    assert batch.pool.nbytes() == 0
    fresh = Chatbot(bot.model, bot.tokenizer, bot.settings)
    finished = [entry for entry in started if not entry[3].cancelled]
    assert 40 < len(finished) < 64
    for turns, seed, changes, _, delivered in finished:
        *_, reply, end = delivered
        alone = fresh.respond(turns, seed, **changes)
        assert (reply.token_ids, reply.stop_reason, end) == (alone.token_ids, alone.stop_reason, None)
        assert reply.log_prob == pytest.approx(alone.log_prob, abs=2e-4)


def test_sixteen_conversations_take_one_forward_pass_per_step(bot, monkeypatch):
    """Without the compiled library, which these models do not use; alone each would take sixteen passes."""
    assert getattr(bot.model, "native", None) is None
    batch, rows, real = SharedBatch(bot), [], bot.model.forward

    def counting(*args, **named):
        rows.append(len(named["input_ids"] if "input_ids" in named else args[0]))
        return real(*args, **named)

    monkeypatch.setattr(bot.model, "forward", counting)
    replies = [start(batch, [TEXTS[n % len(TEXTS)]], n, min_reply_tokens=8, method="greedy")[1] for n in range(16)]
    while not all(replies):  # until every prompt is read
        steps(batch, 1)
    assert max(rows) > 1  # prompts are read together, too
    for _ in range(4):
        rows.clear()
        lengths = [len(delivered) for delivered in replies]
        steps(batch, 1)
        assert rows == [16]
        assert [len(delivered) for delivered in replies] == [length + 1 for length in lengths]
    rows.clear()
    steps(batch)
    tokens = sum(len(delivered) for delivered in replies)
    assert all(delivered[-1] is None for delivered in replies)
    assert len(rows) < tokens / 4


@torch.inference_mode()
def test_logits_in_slots_are_those_alone(bot, monkeypatch):
    """Dialogues of any length that are read together, in parts of any length, in any order, and leave at any time."""
    monkeypatch.setattr(table, "BLOCK_TOKENS", 4)  # so that lengths differ by several classes
    draw, pool, size = random.Random(1), TorchSlots(bot.model), bot.model.config.vocab_size
    alone: dict[int, TorchBatch] = {}
    largest = 0.0
    for _ in range(40):
        for _ in range(draw.choice([0, 1, 3]) if len(alone) < 12 else 0):
            alone[pool.enter(None)] = TorchBatch(bot.model)
        for slot in draw.sample(sorted(alone), len(alone) // 6):
            pool.leave(slot)
            del alone[slot]
        rows = draw.sample(sorted(alone), len(alone))
        ids = [[draw.randrange(3, size) for _ in range(draw.choice([1, 1, 1, 1, 4, 7]))] for _ in rows]
        speakers = [[number % 2] * len(part) for number, part in enumerate(ids)]
        if rows:
            logits = pool.read_rows(rows, ids, speakers)
            expected = [
                alone[slot].read([part], [role])[0] for slot, part, role in zip(rows, ids, speakers, strict=True)
            ]
            largest = max(largest, (logits - torch.stack(expected)).abs().max().item())
    assert largest < 5e-5


@torch.inference_mode()
def test_a_nan_in_a_dialogue_reaches_no_other_and_leaves_with_it(bot):
    pool = TorchSlots(bot.model)
    slots, alone = [pool.enter(None) for _ in range(3)], TorchBatch(bot.model)
    pool.read_rows(slots, [[5, 6, 7]] * 3, [[0] * 3] * 3)
    expected = alone.read([[5, 6, 7]], [[0] * 3])
    row = pool.row_of(slots[1])
    poison(pool, row)
    logits = pool.read_rows(slots, [[8]] * 3, [[1]] * 3)
    assert logits[1].isnan().any()
    torch.testing.assert_close(logits[[0, 2]], alone.read([[8]], [[1]]).expand(2, -1), rtol=1e-4, atol=1e-4)
    pool.leave(slots[1])
    again = pool.enter(None)  # takes the row that had the NaN
    assert pool.row_of(again) == row
    logits = pool.read_rows([slots[0], again], [[9] * 3, [5, 6, 7]], [[0] * 3] * 2)
    torch.testing.assert_close(logits[1:], expected, rtol=1e-4, atol=1e-4)


def test_a_reply_that_fails_ends_alone(bot):
    """Its logits turn to NaN in the middle of the others, which go on without beginning again."""
    batch = SharedBatch(bot, prompt_tokens=1000)
    jobs = [start(batch, [text], number, min_reply_tokens=6) for number, text in enumerate(TEXTS[:5])]
    steps(batch, 3)
    assert all(len(delivered) == 3 for _, delivered in jobs)
    poison(batch.pool, batch.pool.row_of(batch._rows.slots[2]))
    steps(batch)
    assert [isinstance(delivered[-1], GenerationError) for _, delivered in jobs] == [False, False, True, False, False]
    fresh = Chatbot(bot.model, bot.tokenizer, bot.settings)
    for number in (0, 1, 3, 4):
        delivered = jobs[number][1]
        assert delivered[-2].token_ids == fresh.respond([TEXTS[number]], number, min_reply_tokens=6).token_ids
        assert len(delivered) == len(delivered[-2].token_ids) + 2  # every step once, the end of turn, None


def test_a_long_history_is_read_beside_the_others(softmax):
    """In parts of a bounded size, while a running reply gets its token at every step and a short message overtakes."""
    batch, read = SharedBatch(softmax, prompt_tokens=16), []
    real = batch.pool.read_rows

    def counting(rows, ids, speakers):
        read.append(sum(len(part) for part in ids if len(part) > 1))
        return real(rows, ids, speakers)

    batch.pool.read_rows = counting
    _, running = start(batch, ["你好"], 1, min_reply_tokens=60, floor_start_tokens=60)
    steps(batch, 2)
    _, long = start(batch, ["我考试没考好，数学没考好，今天心情不太好，下雨了，没带伞" * 3] * 7, 2)
    _, short = start(batch, ["在吗"], 3)
    before = len(running)
    steps(batch, 8)
    assert len(running) == before + 8
    assert short
    assert not long
    assert 0 < max(read) <= 16
    steps(batch)
    assert long[-1] is None
    fresh = Chatbot(softmax.model, softmax.tokenizer, softmax.settings)
    history = ["我考试没考好，数学没考好，今天心情不太好，下雨了，没带伞" * 3] * 7
    assert long[-2].token_ids == fresh.respond(history, 2).token_ids


@pytest.mark.parametrize("name", ["gated", "softmax", "nmst head", "qwen2", "llama"])
def test_the_next_turn_reads_only_its_message(name, monkeypatch):
    """Recurrent states and keys and values are cached after a reply, with its end of turn."""
    bot, read = built(name), []
    bot.snapshots.clear()
    batch = SharedBatch(bot)
    real, encode, reply_ids = batch.pool.read_rows, bot.reader.ids, {}

    def counting(rows, ids, speakers):
        read.append(sum(map(len, ids)))
        return real(rows, ids, speakers)

    batch.pool.read_rows = counting
    spelled = lambda turn, script="typed": list(reply_ids.get(turn) or encode(turn, script))  # noqa: E731  # as the model did
    monkeypatch.setattr(bot.reader, "ids", spelled)
    turns: list[str] = []
    for number in range(4):
        turns.append(TEXTS[number])
        read.clear()
        _, delivered = start(batch, turns, number)
        pieces = (delivered and None) or bot.request(turns, number).prompt.pieces
        steps(batch)
        reply = delivered[-2]
        assert sum(read) == len(pieces[-1][0]) + len(reply.token_ids) + len(bot.layout.end_of_reply)
        turns.append(reply.text)
        reply_ids[reply.text] = reply.token_ids


def test_memory_follows_the_number_of_dialogues(softmax):
    pool = start_slots(softmax.model)
    assert isinstance(pool, TorchSlots)
    slots = [pool.enter(None) for _ in range(64)]
    pool.read_rows(slots, [[5] * 70] * 64, [[0] * 70] * 64)
    full = pool.nbytes()
    for slot in slots[8:]:
        pool.leave(slot)
    assert pool.nbytes() <= full / 4
    together = pool.read_rows(slots[:8], [[6]] * 8, [[1]] * 8)
    alone = TorchBatch(softmax.model)
    alone.read([[5] * 70], [[0] * 70])
    torch.testing.assert_close(together, alone.read([[6]], [[1]]).expand(8, -1), rtol=1e-4, atol=1e-4)
    for slot in slots[:8]:
        pool.leave(slot)
    assert pool.nbytes() == 0

"""Continuous batching: whatever else runs, every reply is the one its seed gives alone."""

from __future__ import annotations

import itertools
import random
import threading
import time

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.chat.worker import BusyError, Worker, WorkerError
from chatbot.decoding import sampler
from chatbot.decoding.candidates import GenerationError
from chatbot.decoding.settings import ReplySettingsError
from chatbot.decoding.slots import NativeSlots

MESSAGES = ["你好", "今天吃什么", "我昨天去爬山了，好累", "哈哈哈", "你叫什么名字？", "晚安", "周末有空吗"]
WAYS = [{}, {}, {}, {"temperature": 1.2}, {"method": "greedy"}, {"no_repeat_ngram": 2, "repeat_cost": 3.0}]
WAYS += [{"candidates": 3}, {"method": "beam", "beams": 2}, {"banned_words": ["好"]}]


def draw_conversations(count: int, seed: int = 0):
    """Histories, seeds and settings of many conversations, some of several turns and with common beginnings."""
    draw = random.Random(seed)
    for number in range(count):
        turns = [draw.choice(MESSAGES) for _ in range(draw.choice([1, 1, 3, 5]))]
        yield turns, number, draw.choice(WAYS)


@pytest.fixture(params=["float32", "int8", "no compiler"])
def bot(request, checkpoint):
    bot = Chatbot.from_pretrained(checkpoint, dtype="int8" if request.param == "int8" else "auto")
    if request.param == "no compiler":
        bot.model.native = None
    return bot


@pytest.fixture
def worker(bot):
    worker = Worker(bot, max_rows=8)
    yield worker
    worker.close(0)


def whole(worker, turns, seed, changes):
    *_, reply = worker.stream_replies(turns, seed, **changes)
    return reply


def together(worker, conversations) -> list:
    """All at once, each from a thread of its own, in no order."""
    replies = [None] * len(conversations)

    def ask(number):
        time.sleep(random.Random(number).random() * 0.05)
        turns, seed, changes = conversations[number]
        replies[number] = whole(worker, turns, seed, changes)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(conversations))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return replies


def test_replies_are_those_alone(bot, worker):
    conversations = list(draw_conversations(40))
    replies = together(worker, conversations)
    for (turns, seed, changes), reply in zip(conversations, replies, strict=True):
        alone = Chatbot(bot.model, bot.tokenizer, bot.settings).respond(turns, seed, **changes)
        assert reply.token_ids == alone.token_ids, changes
        assert (reply.stop_reason, reply.text, reply.seed) == (alone.stop_reason, alone.text, alone.seed)
        assert reply.log_prob == pytest.approx(alone.log_prob, abs=1e-9 if bot.model.native else 1e-4)


@pytest.mark.slow
def test_five_hundred_at_once(checkpoint):
    for dtype in ("float32", "int8"):
        bot = Chatbot.from_pretrained(checkpoint, dtype=dtype)
        worker = Worker(bot, max_rows=128, max_waiting=500)
        conversations = list(draw_conversations(500, seed=1))
        replies = together(worker, conversations)
        worker.close(0)
        fresh = Chatbot(bot.model, bot.tokenizer, bot.settings)
        for (turns, seed, changes), reply in zip(conversations, replies, strict=True):
            assert reply.token_ids == fresh.respond(turns, seed, **changes).token_ids


def test_streams_grow_and_a_cancelled_one_frees_its_place(worker):
    stream = worker.stream_replies(["你好"], 1, floor_start_tokens=500, min_reply_tokens=200)
    texts = [next(stream).text for _ in range(5)]
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert worker.busy_rows == 1
    stream.close()
    deadline = time.monotonic() + 5
    while worker.busy_rows and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.busy_rows == 0


def test_cancelled_is_gone_within_two_steps(bot):
    worker = Worker(bot)
    steps = []
    job = worker.submit(bot.request(["你好"], 1, floor_start_tokens=500, min_reply_tokens=400), steps.append)
    while len(steps) < 3:
        time.sleep(0.001)
    job.cancel()
    before = len(steps)
    time.sleep(0.2)
    assert len(steps) <= before + 2
    assert worker.busy_rows == 0
    worker.close(0)


def test_a_full_queue_is_said(bot):
    worker = Worker(bot, max_rows=1, max_waiting=2)
    long = {"floor_start_tokens": 500, "min_reply_tokens": 400}
    jobs = [worker.submit(bot.request(["你好"], 1, **long), lambda reply: None)]
    while not worker.busy_rows:
        time.sleep(0.001)
    jobs += [worker.submit(bot.request(["你好"], 1, **long), lambda reply: None) for _ in range(2)]
    with pytest.raises(BusyError, match="Too many"):
        worker.submit(bot.request(["你好"], 1), lambda reply: None)
    for job in jobs:
        job.cancel()
    assert whole(worker, ["你好"], 1, {}) is not None
    worker.close(0)


def test_what_cannot_be_asked_is_said_at_once(worker):
    with pytest.raises(ReplySettingsError):
        next(worker.stream_replies(["你好"], temperature=0))
    assert worker.busy_rows == 0


def test_one_that_fails_takes_nobody_with_it(bot, monkeypatch):
    """A conversation whose logits turn to NaN, in the middle of others; those say what they say alone."""
    worker = Worker(bot, max_rows=8)
    poison = bot.tokenizer.encode("毒")
    real = sampler.choose

    def fails(logits, rows, vocabulary):
        for index, row in enumerate(rows):
            if row.earlier and list(row.earlier[0]) == poison and len(row.draft.token_ids) == 2:
                logits = logits.clone()
                logits[index] = torch.nan
        return real(logits, rows, vocabulary)

    monkeypatch.setattr(sampler, "choose", fails)
    conversations = [(["你好"], number, {"min_reply_tokens": 6}) for number in range(6)]
    errors = []

    def ask_poisoned():
        try:
            whole(worker, ["你好", "毒", "嗯"], 0, {"min_reply_tokens": 6})
        except GenerationError as error:
            errors.append(error)

    thread = threading.Thread(target=ask_poisoned)
    thread.start()
    replies = together(worker, conversations)
    thread.join(60)
    assert len(errors) == 1
    for (turns, seed, changes), reply in zip(conversations, replies, strict=True):
        assert reply.token_ids == bot.respond(turns, seed, **changes).token_ids
    worker.close(0)


def test_a_listener_that_breaks_is_left_alone(worker):
    def broken(reply):
        raise RuntimeError("gone")

    job = worker.submit(worker.bot.request(["你好"], 1), broken)
    assert whole(worker, ["你好"], 1, {}).text is not None
    assert job.cancelled


def test_closing_ends_what_waits_with_a_sentence(bot):
    worker = Worker(bot, max_rows=1)
    arrived = []
    long = bot.request(["你好"], 1, floor_start_tokens=5000, min_reply_tokens=4000)
    for _ in range(3):
        worker.submit(long, arrived.append)
    time.sleep(0.1)
    started = time.monotonic()
    worker.close(0.2)
    assert time.monotonic() - started < 3
    assert sum(isinstance(reply, WorkerError) for reply in arrived) == 3
    with pytest.raises(WorkerError, match="shutting down"):
        worker.submit(long, arrived.append)


@pytest.mark.parametrize(("changes", "together_at_most"), [({}, 3), ({"candidates": 2}, 2), ({"candidates": 5}, 5)])
def test_no_more_rows_than_allowed_are_decoded_together(bot, changes, together_at_most):
    """With three rows: three replies, one reply of two candidates, or alone one of more candidates than rows."""
    worker = Worker(bot, max_rows=3)
    worker.close(0)
    worker._stopping = False
    settings = {"floor_start_tokens": 500, "min_reply_tokens": 400, **changes}
    jobs = [worker.submit(bot.request(["你好"], seed, **settings), lambda reply: None) for seed in range(5)]
    with torch.inference_mode():
        for _ in range(4):
            worker._tick()
    assert worker.busy_rows == together_at_most
    waiting = len(jobs) - together_at_most // changes.get("candidates", 1)
    assert len(worker.waiting) == waiting
    jobs[0].cancel()
    with torch.inference_mode():
        worker._tick()
        worker._tick()
    assert (worker.busy_rows, len(worker.waiting)) == (together_at_most, waiting - 1)


@pytest.fixture
def asked_by(bot):
    """Function that queues a job of a sender in a worker of two rows that the test steps, and the worker."""
    sender: list = [None]
    worker = Worker(bot, max_rows=2, max_waiting=6, sender=lambda: sender[0])
    worker.close(0)
    worker._stopping = False

    def ask(name, **changes):
        sender[0] = name
        settings = {"floor_start_tokens": 500, "min_reply_tokens": 400, **changes}
        return worker.submit(bot.request(["你好"], 1, **settings), lambda reply: None)

    return ask, worker


@torch.inference_mode()
def running_after_a_tick(worker):
    worker._tick()
    return [job for batch in worker.batches for job in batch.jobs]


def test_a_free_row_belongs_to_the_sender_with_the_fewest_rows(asked_by):
    ask, worker = asked_by
    flood = [ask("flood") for _ in range(2)]
    assert set(running_after_a_tick(worker)) == set(flood)
    flood += [ask("flood") for _ in range(3)]
    guest = ask("guest")
    flood[0].cancel()
    assert set(running_after_a_tick(worker)) == {flood[1], guest}
    guests = [ask("guest"), ask("third")]
    flood[1].cancel()
    assert set(running_after_a_tick(worker)) == {guest, flood[2]}  # flood and third have no row; the older job starts
    assert list(worker.waiting) == [*flood[3:], *guests]
    flood[2].cancel()
    flood[3].cancel()
    flood[4].cancel()
    assert set(running_after_a_tick(worker)) == {guest, guests[1]}


def test_candidates_count_as_rows_of_their_sender(asked_by):
    ask, worker = asked_by
    worker.max_rows = 5
    three = ask("three", candidates=3)
    one = ask("one")
    running_after_a_tick(worker)
    later = [ask("three"), ask("one")]
    assert set(running_after_a_tick(worker)) == {three, one, later[1]}


def test_a_job_that_is_next_is_not_overtaken_by_smaller_ones(asked_by):
    ask, worker = asked_by
    first = ask("a")
    running_after_a_tick(worker)
    large, small = ask("b", candidates=2), ask("a")
    assert running_after_a_tick(worker) == [first]
    first.cancel()
    assert running_after_a_tick(worker) == [large]
    assert list(worker.waiting) == [small]


def test_a_named_sender_may_have_half_of_the_queue(asked_by):
    ask, worker = asked_by
    flood = [ask("flood") for _ in range(3)]
    with pytest.raises(BusyError, match="your replies"):
        ask("flood")
    for name in ("guest", "guest", "third"):
        ask(name)
    with pytest.raises(BusyError, match="Too many people"):
        ask("fourth")
    flood[0].cancel()
    assert ask("flood") in worker.waiting


@pytest.mark.parametrize("sender", [None, "a"])
def test_replies_of_one_sender_start_in_order_of_arrival(asked_by, sender):
    ask, worker = asked_by
    jobs = [ask(sender) for _ in range(3)]
    for started in ({0, 1}, {1, 2}):
        assert set(running_after_a_tick(worker)) == {jobs[number] for number in started}
        jobs[min(started)].cancel()
    assert [ask(None) for _ in range(6)] == list(worker.waiting)[-6:]  # no name, no share of the queue


def test_replies_to_many_senders_are_those_alone(bot):
    sender = threading.local()
    worker = Worker(bot, max_rows=3, sender=lambda: sender.name)
    stream_replies = worker.stream_replies

    def named(turns, seed, **changes):
        sender.name = f"sender {seed % 3 * seed}"  # a third is by one sender
        return stream_replies(turns, seed, **changes)

    worker.stream_replies = named
    conversations = list(draw_conversations(12, seed=2))
    replies = together(worker, conversations)
    worker.close(0)
    for (turns, seed, changes), reply in zip(conversations, replies, strict=True):
        alone = Chatbot(bot.model, bot.tokenizer, bot.settings).respond(turns, seed, **changes)
        assert reply.token_ids == alone.token_ids, changes


@pytest.fixture
def native_bot(checkpoint):
    bot = Chatbot.from_pretrained(checkpoint)
    if bot.model.native is None:
        pytest.skip("no C compiler here")
    return bot


@pytest.fixture
def tokens_read(monkeypatch):
    """Number of tokens of every call that reads into the shared batch."""
    read = []
    original = NativeSlots.read_rows

    def counting(slots, rows, ids, speakers):
        read.append(sum(map(len, ids)))
        return original(slots, rows, ids, speakers)

    monkeypatch.setattr(NativeSlots, "read_rows", counting)
    return read


def wait_until_idle(worker):
    while worker.busy_rows:  # the end of turn is read after the reply was delivered
        time.sleep(0.001)


def test_an_edited_message_reads_only_itself(native_bot, tokens_read):
    """The state after the history of a prompt is cached: only the last message of the same history is read again."""
    worker = Worker(native_bot)
    history = ["今天吃什么", "吃面吧", "好啊", "那就走吧"]
    whole(worker, [*history, "去哪家"], 0, {})
    wait_until_idle(worker)
    tokens_read.clear()
    reply = whole(worker, [*history, "明天呢"], 1, {})
    wait_until_idle(worker)
    worker.close(0)
    assert sum(tokens_read) == len(native_bot.tokenizer.encode("明天呢")) + 1 + len(reply.token_ids) + 1


def test_a_turn_reads_only_its_message(native_bot, tokens_read, monkeypatch):
    """The state after a served reply is cached, with its end of turn: turn 8 costs as many tokens as turn 1."""
    bot, read = native_bot, tokens_read
    worker = Worker(bot)
    turns, message = [], bot.tokenizer.encode("今天吃什么")
    encode, ids_of_replies = bot.reader.ids, {}  # what a random model says would be encoded to other tokens
    monkeypatch.setattr(bot.reader, "ids", lambda turn, script: ids_of_replies.get(turn) or encode(turn, script))
    for number in range(8):
        turns.append("今天吃什么")
        read.clear()
        reply = whole(worker, turns, number, {})
        wait_until_idle(worker)
        opening = 1 if number == 0 else 0  # [CLS]
        assert sum(read) == opening + len(message) + 1 + len(reply.token_ids) + 1
        turns.append(reply.text)
        ids_of_replies[reply.text] = reply.token_ids
    worker.close(0)


def test_a_worker_reads_ahead_when_old_turns_are_dropped(bot, dialogues):
    bot.context_tokens = 120
    worker, turns, first_turns = Worker(bot), [], set()
    for number in range(30):
        message = dialogues[number][0][:6]
        pieces = bot.request([*turns, message], 1).prompt.pieces
        # the message, the last reply, and the message before it if the reply's text has other tokens than were chosen
        assert bot.snapshots.longest(pieces)[0] >= len(pieces) - 3
        *_, reply = worker.stream_replies([*turns, message], number)
        turns += [message, reply.text]
        end = time.monotonic() + 10
        while (worker._later or worker.batches) and time.monotonic() < end:
            time.sleep(0.001)
        first_turns.add(bot.request([*turns, message], 1).prompt.first_turn)
    assert len(first_turns) > 3
    worker.close()

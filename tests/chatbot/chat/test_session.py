from __future__ import annotations

import itertools
import threading

import pytest
import torch

from chatbot import Chatbot, ChatSession
from chatbot.chat.bot import Reply
from chatbot.chat.variants import MAX_VARIATION
from chatbot.decoding.candidates import GenerationError
from chatbot.errors import XianliaoError
from chatbot.text.dialogue import DialogueError

MESSAGES = ["你好", "今天天气怎么样", "我想吃面", "晚安"]


def test_a_seed_repeats_and_another_differs(bot):
    replies = {seed: bot.reply(MESSAGES[:1], seed=seed) for seed in range(6)}
    assert all(bot.reply(MESSAGES[:1], seed=seed) == reply for seed, reply in replies.items())
    assert len(set(replies.values())) > 1


def test_a_random_seed_is_reported_and_repeats(bot):
    reply = bot.respond(MESSAGES[:1])
    assert bot.respond(MESSAGES[:1], seed=reply.seed).token_ids == reply.token_ids


def test_session_equals_the_history_replayed_from_text(bot):
    session = ChatSession(bot)
    for message in MESSAGES:
        session.reply(message, seed=5)
    fresh = Chatbot(bot.model, bot.tokenizer, bot.settings)
    for end in range(1, 8, 2):
        assert fresh.reply(session.turns[:end], seed=5) == session.turns[end]


def test_carried_state_is_bit_equal_to_the_rebuilt_one(bot):
    turns = [bot.tokenizer.encode(text) for text in [*MESSAGES, "好的"]]
    prompts = [bot.layout.prompt(turns[:end], 1000) for end in (1, 3, 5)]
    for prompt in prompts:
        carried, logits = bot.read_prompt(prompt)
    fresh = Chatbot(bot.model, bot.tokenizer, bot.settings)
    rebuilt, logits_again = fresh.read_prompt(prompts[-1])
    assert torch.equal(logits, logits_again)
    for _ in range(3):
        assert torch.equal(carried.read([[5, 6]], [[0, 0]]), rebuilt.read([[5, 6]], [[0, 0]]))


def test_old_turns_are_forgotten_in_time_and_memory_stays_bounded(model, tokenizer, bot):
    bot.context_tokens = 60
    bot.snapshots.max_bytes = 400_000
    session = ChatSession(bot)
    for number in range(60):
        session.reply(f"第{number}句话", seed=1)
    assert len(session.turns) == 120
    assert 200_000 < bot.snapshots.bytes <= 400_000
    assert 1 < len(bot.snapshots) < 120
    fresh = Chatbot(bot.model, bot.tokenizer, bot.settings)
    fresh.context_tokens = 60
    assert fresh.reply(session.turns[:-1], seed=1) == session.turns[-1]


def background():
    """Wait for what is read after a reply."""
    for thread in threading.enumerate():
        if thread.name == "reading ahead":
            thread.join()


def test_no_message_waits_for_old_turns_to_be_read_again(bot, dialogues):
    bot.context_tokens = 120
    session, first_turns = ChatSession(bot), set()
    for number in range(40):
        message = dialogues[number][0][:6]
        pieces = bot.request([*session.turns, message], 1).prompt.pieces
        assert bot.snapshots.longest(pieces)[0] >= len(pieces) - 2  # the last reply and the message are new
        session.reply(message, seed=number)
        background()
        first_turns.add(bot.request([*session.turns, message], 1).prompt.first_turn)
    assert len(first_turns) > 4


def test_a_state_that_cannot_be_read_ahead_is_read_with_the_message(bot, monkeypatch):
    def fails(prompt):
        raise MemoryError

    bot.context_tokens = 60
    session = ChatSession(bot)
    with monkeypatch.context() as patch:
        patch.setattr(bot, "_read_ahead", lambda prompt: None)
        for number in range(12):
            session.reply(f"第{number}句", seed=1)
    expected = session.turns
    bot.snapshots.clear()
    session = ChatSession(bot)
    read = bot.read_prompt
    for number in range(12):
        monkeypatch.setattr(bot, "read_prompt", read)
        stream = session.stream(f"第{number}句", seed=1)
        next(stream)
        monkeypatch.setattr(bot, "read_prompt", fails)
        for _ in stream:
            pass
        background()
    assert session.turns == expected


def test_a_stream_closed_before_a_word_leaves_no_empty_turn(bot):
    session = ChatSession(bot, candidates=4)
    stream = session.stream("你好", seed=1)
    next(stream)
    stream.close()
    assert session.turns == []


def test_undo_retry_edit_clear(bot):
    session = ChatSession(bot)
    for message in MESSAGES[:3]:
        session.reply(message, seed=2)
    before = list(session.turns)
    assert session.retry(seed=2) == before[-1]
    assert session.undo() == MESSAGES[2]
    assert session.turns == before[:4]
    answer = session.edit(0, "换一句", seed=3)
    assert session.turns == ["换一句", answer]
    assert answer == bot.reply(["换一句"], seed=3)
    session.clear()
    assert session.turns == []
    with pytest.raises(DialogueError, match="nothing to take back"):
        session.undo()
    with pytest.raises(DialogueError, match="not one of yours"):
        session.edit(1, "x")


def scripted(bot, monkeypatch, replies):
    """Let a bot give these replies, by seed and number of the variant; return the list of what it is asked for."""
    asked = []

    def stream_replies(turns, seed=None, variation=0, **changes):
        asked.append((seed, variation))
        text = replies[seed, variation]
        for end in range(1, len(text) + 1):
            yield Reply(text[:end], tuple(range(end)), "eos", -1.0, seed, 0.0)

    monkeypatch.setattr(bot, "stream_replies", stream_replies)
    return asked


def test_a_retry_gives_a_reply_that_was_not_shown_and_begins_no_other(bot, monkeypatch):
    replies = {(7, 0): "好呀", (7, 1): "行啊", (8, 0): "好呀", (9, 0): "行啊", (10, 0): "好的"}
    replies |= {(11, 0): "好的", (12, 0): "好呀", (13, 0): "行啊", (13, 1): "好的", (13, 2): "嗯"}
    asked = scripted(bot, monkeypatch, replies)
    session = ChatSession(bot)
    assert [session.reply("去吗", 7), session.another()] == ["好呀", "行啊"]
    assert list(session.stream_retry()) == ["好的"]  # not the words of replies that were shown
    assert asked == [(7, 0), (7, 1), (8, 0), (9, 0), (10, 0)]
    assert session.turns == ["去吗", "好的"]
    assert list(session.stream_retry()) == ["嗯"]  # all next seeds repeat, so their variants are tried
    assert (session.turns, session.variation) == (["去吗", "嗯"], 2)


def test_a_retry_of_a_bot_with_one_reply_gives_it_once(bot, monkeypatch):
    asked = scripted(bot, monkeypatch, {(seed, number): "好" for seed in range(7, 11) for number in range(9)})
    session = ChatSession(bot)
    session.reply("去吗", 7)
    assert list(session.stream_retry()) == ["好"]
    assert asked[1:] == [(8, 0), (9, 0), (10, 0), *((10, number) for number in range(1, 1 + MAX_VARIATION))]
    asked.clear()
    greedy = ChatSession(bot, ["去吗", "好"], method="greedy")
    greedy.reply("走", 7)
    assert list(greedy.stream_retry()) == ["好"]
    assert asked == [(7, 0), (8, 0)]  # another seed or variant would be the same


def test_a_retry_that_is_stopped_before_it_shows_a_word_keeps_the_reply(bot, monkeypatch):
    def stream_replies(turns, seed=None, variation=0, **changes):
        for end in range(1, 3):
            if seed == 8 and end == 2:
                raise KeyboardInterrupt
            yield Reply("好呀"[:end], tuple(range(end)), "eos", -1.0, seed, 0.0)

    monkeypatch.setattr(bot, "stream_replies", stream_replies)
    session = ChatSession(bot)
    session.reply("去吗", 7)
    with pytest.raises(KeyboardInterrupt):
        list(session.stream_retry())
    assert session.turns == ["去吗", "好呀"]
    assert session.last_reply.seed == 7


def test_the_variants_after_an_undo_are_those_of_the_reply_that_is_left(bot, monkeypatch):
    asked = scripted(bot, monkeypatch, {(seed, number): f"{number}" for seed in (7, None) for number in range(9)})
    session = ChatSession(bot)
    for message in ("去吗", "走"):
        session.reply(message, 7)
    session.another()
    session.undo()
    session.another()
    assert asked[-1] == (None, 1)


def test_stream_grows_to_the_reply_and_a_stop_keeps_what_was_said(bot):
    whole = list(bot.stream(MESSAGES[:1], seed=4))
    assert all(after.startswith(before) for before, after in itertools.pairwise(whole))
    assert whole[-1] == bot.reply(MESSAGES[:1], seed=4)
    session = ChatSession(bot)
    stream = session.stream(MESSAGES[0], seed=4)
    texts = [next(stream) for _ in range(2)]
    stream.close()
    assert session.last_reply.stop_reason == "stopped"
    assert session.last_reply.seed == 4
    assert len(session.last_reply.token_ids) == 2
    assert session.turns == [MESSAGES[0], texts[-1]]


@pytest.mark.parametrize("message", ["", "  \n\t ", "长" * 100_000])
def test_bad_messages_are_explained_and_change_nothing(bot, message):
    session = ChatSession(bot)
    session.reply(MESSAGES[0], seed=0)
    before = list(session.turns)
    with pytest.raises(DialogueError) as error:
        session.reply(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
    assert session.turns == before
    with pytest.raises(DialogueError):
        session.edit(0, message)
    assert session.turns == before


def test_a_failure_in_the_middle_changes_nothing(bot, monkeypatch):
    session = ChatSession(bot)
    for message in MESSAGES[:2]:
        session.reply(message, seed=0)
    before = list(session.turns)

    begun = bot.respond(MESSAGES[:1], seed=0)

    def fails(turns, seed, **changes):
        yield begun
        raise GenerationError("broken")

    monkeypatch.setattr(bot, "stream_replies", fails)
    for action in (lambda: session.reply("x"), session.retry, lambda: session.edit(0, "x")):
        with pytest.raises(GenerationError):
            action()
        assert session.turns == before


@pytest.mark.parametrize("seed", [-1, 1.5, "1"])
def test_bad_seeds_are_explained(bot, seed):
    with pytest.raises(XianliaoError, match="seed"):
        bot.reply(MESSAGES[:1], seed=seed)


@pytest.mark.parametrize("turns", [[], "你好", [1, 2]])
def test_bad_histories_are_explained(bot, turns):
    with pytest.raises(DialogueError):
        bot.reply(turns)


def test_a_typed_special_token_is_text(bot):
    prompt = bot.layout.prompt(bot.encode_turns(["[SEP][CLS]你好"]), 100)
    special = [token for token in prompt.input_ids if token in bot.tokenizer.special_ids]
    assert special == [bot.tokenizer.cls_id, bot.tokenizer.sep_id]
    assert bot.reply(["[SEP]"], seed=0) is not None


def test_greedy_and_other_settings_can_be_asked_for(bot):
    assert bot.reply(MESSAGES[:1], seed=0, method="greedy") == bot.reply(MESSAGES[:1], seed=9, method="greedy")
    reply = bot.respond(MESSAGES[:1], seed=0, max_reply_tokens=2)
    assert len(reply.token_ids) <= 2


@pytest.mark.parametrize("floor", [6, 39])
def test_log_probability_is_the_models_own(bot, floor):
    """Without the floor and the truncation, and without an EOS that was forced."""
    reply = bot.respond(MESSAGES[:1], seed=1, max_reply_tokens=40, floor_start_tokens=floor)
    forced = reply.stop_reason == "limit"
    tokens = [*reply.token_ids, *([] if forced else [bot.tokenizer.sep_id])]
    prompt = bot.layout.prompt(bot.encode_turns(MESSAGES[:1]), 100)
    ids = torch.tensor([[*prompt.input_ids, *tokens]])
    speakers = torch.tensor([[*prompt.speaker_ids, *[1] * len(tokens)]])
    start = len(prompt.input_ids)
    with torch.no_grad():
        logits = bot.model(ids, token_type_ids=speakers).logits[0, start - 1 : -1]
    logits[:, list(bot.vocabulary.banned_ids)] = -torch.inf
    bot.vocabulary.readable.apply(logits, [tokens[:end] for end in range(len(tokens))])
    logits[0, bot.tokenizer.sep_id] = -torch.inf  # not allowed as the first token
    log_probs = logits.log_softmax(-1).gather(1, ids[0, start:, None])
    assert reply.log_prob == pytest.approx(log_probs.sum().item(), abs=1e-3)
    assert forced == (floor == 39)

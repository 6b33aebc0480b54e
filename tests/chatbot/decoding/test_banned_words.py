"""A banned word is in no reply, however it could be spelled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatbot.chat.bot import Chatbot
from chatbot.decoding.hf_generate import reply_processors
from chatbot.decoding.rules.banned_words import BannedWords
from chatbot.decoding.settings import ReplySettings, ReplySettingsError

PIECES = (
    b"",
    b"a",
    b"b",
    b"ab",
    b"ba",
    b"c",
    "你".encode(),
    "你好".encode(),
    *("好".encode()[i : i + 1] for i in range(3)),
)


@given(st.lists(st.integers(1, len(PIECES) - 1), max_size=12), st.sampled_from(["AB", "aba", "你好", "好", "c", "bcb"]))
def test_what_is_banned_is_exactly_what_would_complete_a_word(path, word):
    rule, spelled = BannedWords([word], PIECES), word.encode().lower()
    reply = []
    for token in path:  # walks only over what is allowed
        logits = torch.zeros(1, len(PIECES))
        rule.apply(logits, [reply])
        text = b"".join(PIECES[t] for t in reply)
        for candidate, piece in enumerate(PIECES):
            shown = (text + piece).decode("utf-8", "ignore").encode()  # broken bytes are not shown
            assert (logits[0, candidate] == -torch.inf) == (spelled in shown), (text, piece)
        if logits[0, token] == 0:
            reply.append(token)


def test_no_reply_holds_them_and_the_bound_stays(bot):
    before = [bot.respond([message], seed=seed).text for message in ("你好", "今天") for seed in range(5)]
    words = tuple(sorted({char for text in before for char in text if char.isalpha()}))[:20]
    assert words
    banned = [bot.respond([m], seed=seed, banned_words=words) for m in ("你好", "今天") for seed in range(5)]
    assert not any(word in reply.text for reply in banned for word in words)
    assert all(len(reply.token_ids) <= bot.settings.limit_tokens for reply in banned)
    for method in ("greedy", "beam"):
        reply = bot.respond(["你好"], method=method, banned_words=words)
        assert not any(word in reply.text for word in words)


def test_a_bot_without_a_word_left_ends(model, tokenizer):
    everything = tuple({chr(byte) for byte in range(1, 128)} - set(" \t\n\r\f\v\x1c\x1d\x1e\x1f")) + tuple(
        piece.decode() for piece in tokenizer.token_bytes() if len(piece) > 2 and piece.decode().strip()
    )
    bot = Chatbot(model, tokenizer, ReplySettings(banned_words=everything))
    assert len(bot.respond(["你好"], seed=0).token_ids) <= bot.settings.limit_tokens


def test_forms_of_a_word():
    pieces = [piece.encode() for piece in ("É", "é", "cole", "COLE", "bad", "word")]

    def banned(words, reply, pieces=pieces):
        logits = torch.zeros(1, len(pieces))
        BannedWords(words, pieces).apply(logits, [reply])
        return (logits[0] == -torch.inf).nonzero().flatten().tolist()

    assert banned(["école"], [0]) == banned(["École"], [1]) == [2, 3]
    assert banned(["bad word"], [4]) == [5]  # WordPiece: the space is put in when the text is shown
    assert banned(["bad word"], [4], [*pieces, b" word"]) == [6]


def test_long_lists_are_quick_and_several_are_kept(bot):
    import time

    words = tuple(f"{chr(0x4E00 + i % 900)}{chr(0x4E00 + i // 900)}坏" for i in range(5000))
    started = time.process_time()
    bot.respond(["你好"], seed=0, banned_words=words)
    assert time.process_time() - started < 5
    before = bot.vocabulary.ban(words)
    bot.vocabulary.ban(("别的",))
    assert bot.vocabulary.ban(words) is before


def test_generate_obeys_too(bot):
    words = tuple(bot.respond(["你好"], method="greedy").text[:1])
    settings = bot.settings.with_changes(method="greedy", banned_words=words)
    prompt = bot.layout.prompt(bot.encode_turns(["你好"]), 100)
    ids, speakers = torch.tensor([prompt.input_ids]), torch.tensor([prompt.speaker_ids])
    rules = reply_processors(settings, bot.vocabulary, ids.shape[1])
    options = {"do_sample": False, "max_new_tokens": 100, "eos_token_id": bot.vocabulary.end_id, "pad_token_id": 0}
    out = bot.model.generate(ids, token_type_ids=speakers, logits_processor=rules, **options)
    reply = out[0, ids.shape[1] :].tolist()
    ours = bot.respond(["你好"], method="greedy", banned_words=words)
    assert reply[: len(ours.token_ids)] == list(ours.token_ids)
    assert words[0] not in ours.text


def test_words_must_be_words(bot):
    for words in ([""], ["\udcff"], "词", [1]):
        with pytest.raises(ReplySettingsError, match="list of words"):
            bot.reply(["你好"], banned_words=words)

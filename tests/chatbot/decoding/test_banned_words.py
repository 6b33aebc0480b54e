"""A banned word is in no reply, however it could be spelled."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatbot.chat.bot import Chatbot
from chatbot.decoding.hf_generate import reply_processors
from chatbot.decoding.rules import banned_words
from chatbot.decoding.rules.banned_words import BannedWords
from chatbot.decoding.settings import ReplySettings, ReplySettingsError
from chatbot.safety.words import lost_exceptions
from chatbot.text.dialogue import clean_turn
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.word_lists import read_word_list
from tests.conftest import ROOT
from tests.processor_time import processor_seconds

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


LETTERS = (b"", b"a", b"b", b"c", b"ab", b"ba", b"aab", b"bcb", b"abcab", b"cab")
WORDS = st.lists(st.text("abc", min_size=2, max_size=5), min_size=1, max_size=12)


@given(st.lists(st.integers(1, len(LETTERS) - 1), max_size=12), WORDS, WORDS)
def test_lists_of_words_that_contain_each_other_ban_what_a_search_for_each_word_bans(path, words, beginnings):
    harmless = {beginning + word for beginning, word in zip(beginnings, words, strict=False)}
    rule, reply = BannedWords([*words, *(f"!{exception}" for exception in harmless)], LETTERS), []
    for token in path:
        logits = torch.zeros(1, len(LETTERS))
        rule.apply(logits, [reply])
        before = b"".join(LETTERS[t] for t in reply).decode()
        for candidate, piece in enumerate(LETTERS):
            text = before + piece.decode()
            ended = [
                (end, word)
                for word in words
                for end in range(1, len(text) + 1)
                if end > len(before) and text[:end].endswith(word)
            ]
            bad = any(
                not any(len(exception) > len(word) and text[:end].endswith(exception) for exception in harmless)
                for end, word in ended
            )
            assert (logits[0, candidate] == -torch.inf) == bad, (text, words, harmless)
        if logits[0, token] == 0:
            reply.append(token)


def test_the_memory_of_a_list_grows_with_its_size_and_not_with_words_times_tokens():
    words = [f"b{number:05}{'a' * 20}" for number in range(400)]
    pieces = [b"", *(f"{'a' * 20}{number:03x}".encode() for number in range(400))]
    tracemalloc.start()
    try:
        rule = BannedWords([*words, *(f"!c{word}" for word in words[:100])], pieces)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    logits = torch.zeros(1, len(pieces))
    rule.apply(logits, [[1]])
    assert (logits == 0).all()


def test_what_completes_a_word_is_cached_up_to_a_bound(monkeypatch):
    pieces = [b"", *(bytes([letter]) for letter in b"abcdefgh"), *(b"a%d" % number for number in range(50))]
    words = [f"{first}{second}a" for first in "abcdefgh" for second in "abcdefgh"]
    monkeypatch.setattr(banned_words, "CACHED_IDS", 120)
    rule = BannedWords(words, pieces)
    for _ in range(2):
        for first in range(1, 9):
            for second in range(1, 9):
                logits = torch.zeros(1, len(pieces))
                rule.apply(logits, [[first, second]])
                assert (logits[0] == -torch.inf).nonzero().flatten().tolist() == [1, *range(9, 59)]
                assert rule._completing.cached_ids <= 120


def test_the_time_of_a_list_does_not_grow_with_words_times_exceptions():
    words = [f"{number:05}x" for number in range(20_000)]
    exceptions = [f"!y{word}" for word in words[-500:]]
    assert not lost_exceptions([*words, *exceptions])
    assert processor_seconds(lambda: lost_exceptions([*words, *exceptions]), 0.5) < 0.5
    assert processor_seconds(lambda: BannedWords([*words, *exceptions], PIECES), 0.4) < 0.4


CHARACTERS = (
    b"",
    *(character.encode() for character in "妈的我他X"),
    "妈的".encode(),
    "妈妈的".encode(),
    "我妈".encode(),
)
CHARACTERS += tuple("妈".encode()[i : i + 1] for i in range(3))


@given(st.lists(st.integers(1, len(CHARACTERS) - 1), max_size=10))
def test_exceptions_allow_exactly_what_they_end_with(path):
    rule = BannedWords(["妈的", "!妈妈的", "!我妈的", "x妈的"], CHARACTERS)
    reply = []
    for token in path:
        logits = torch.zeros(1, len(CHARACTERS))
        rule.apply(logits, [reply])
        emitted = b"".join(CHARACTERS[t] for t in reply)
        before = emitted.decode("utf-8", "ignore").lower()
        for candidate, piece in enumerate(CHARACTERS):
            shown = (emitted + piece).decode("utf-8", "ignore").lower()
            ends = [end for end in range(len(before) + 1, len(shown) + 1) if shown[:end].endswith("妈的")]
            bad = any(not shown[:end].endswith(("妈妈的", "我妈的")) for end in ends)
            assert (logits[0, candidate] == -torch.inf) == bad, (shown, piece)
        if logits[0, token] == 0:
            reply.append(token)


@pytest.mark.parametrize("words", [["妈的", "!他妈妈"], ["!妈的"], ["妈的", "!妈的"], ["!坏"]])
def test_an_exception_ends_with_a_banned_word(bot, words):
    with pytest.raises(ReplySettingsError, match="exception"):
        bot.reply(["你好"], banned_words=words)
    assert bot.settings.with_changes(banned_words=["!", "!!", "妈的", "!妈妈的"]).banned_words[0] == "!"


def sayable(bot, text: str) -> bool:
    """Whether the decoder may choose the tokens of a text one after the other."""
    ids = bot.tokenizer.encode(clean_turn(text))
    rule = bot.vocabulary.ban(bot.settings.banned_words)
    for position, token in enumerate(ids):
        logits = torch.zeros(1, len(bot.vocabulary.pieces))
        rule.apply(logits, [ids[:position]])
        if logits[0, token] == -torch.inf:
            return False
    return True


def test_the_bundled_bot_says_words_of_mothers_and_no_curses():
    bot = Chatbot.from_pretrained("default")
    listed = read_word_list(ROOT / "checkpoints" / "recipe" / "banned_words.txt")
    assert list(bot.settings.banned_words) == listed
    folders = (ROOT / "data_prep" / "samples", ROOT / "checkpoints" / "recipe" / "dialogues")
    files = sorted(path for folder in folders for path in folder.rglob("*.jsonl"))
    all_turns = [turn for path in files for turns in read_dialogues(path) for turn in turns]
    mothers = [turn for turn in all_turns if "妈的" in turn or "他妈" in turn]
    assert len(mothers) >= 22
    for text in [
        *mothers,
        "他妈妈来接他了",
        "这是我妈的手机",
        "爸妈的意思",
        "听他妈的话",
        "早操你做了吗",
        "电脑残留",
        "复杂种类",
    ]:
        assert sayable(bot, text), text
    for text in ("他妈的", "你妈的", "真他妈烦", "妈的，烦死了", "我说妈的", "去他妈的", "操你", "真是他妈的", "脑残"):
        assert not sayable(bot, text), text


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

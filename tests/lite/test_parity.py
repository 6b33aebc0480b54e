"""The C runtime gives the tokens of Python: tokenizer, random numbers, rules, floor and bound, safety."""

from __future__ import annotations

import platform
import random
from pathlib import Path

import pytest
from xianliao_lite import Bot, LiteError

from chatbot import Chatbot
from chatbot.checkpoint.export.turns import opencc_stages
from chatbot.checkpoint.folder import resolve
from chatbot.native.building import build_native
from chatbot.safety import default_safety
from tests.chatbot.safety.test_acts_and_resemblances import ACTS, BESIDE, RESEMBLANCES, RESPELLED
from tests.chatbot.safety.test_questions_and_means import MEANS, ORDINARY, OTHER_ANSWERS, QUESTIONS, YES
from tests.lite.building import METHODS, tiny_checkpoint, weights_file

OPENERS = (
    *(
        "你好",
        "今天心情不太好",
        "你叫什么名字",
        "我想吃火锅",
        "明天考试怎么办",
        "你喜欢听什么歌",
        "周末去哪玩",
        "失眠了",
    ),
    *("哈哈哈哈", "讲个笑话", "我失恋了", "天气真好", "你会做饭吗", "工作好累", "推荐本书", "Hello, 你在干嘛", "😀😀"),
)
CONVERSATIONS = 50


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "biased"])
def tiny(request, library, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = tiny_checkpoint(folder / "tiny", tokenizer, request.param)
    python = Chatbot.from_pretrained(checkpoint, dtype="int8", safety=None)
    return python, Bot(weights_file(folder, checkpoint, None), library=library)


@pytest.fixture(scope="module")
def bundled(library, tmp_path_factory):
    python = Chatbot.from_pretrained("default", dtype="int8")
    return python, Bot(weights_file(tmp_path_factory.mktemp("bundled"), resolve("default")), library=library)


def talk(python: Chatbot, lite: Bot, number: int, turns: int, **changes) -> list[str]:
    """Compare every reply of a conversation; returns the reasons why they ended."""
    draw, history, reasons = random.Random(number), [], []
    for turn in range(turns):
        history.append(OPENERS[number % len(OPENERS)] if turn == 0 else draw.choice(OPENERS))
        seed = 1000 * number + turn
        expected, got = python.respond(history, seed, **changes), lite.reply(history, seed, **changes)
        assert (got.token_ids, got.text, got.stop_reason) == (expected.token_ids, expected.text, expected.stop_reason)
        assert got.log_prob == pytest.approx(expected.log_prob, abs=1e-3)
        history.append(expected.text or "嗯")
        reasons.append(expected.stop_reason)
    return reasons


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_tokens_are_the_same_with_every_rule(tiny, method):
    reasons = {reason for number in range(6) for reason in talk(*tiny, number, 5, **METHODS[method])}
    wanted = {"floor": "floor", "bound": "limit", "limit": "limit", "greedy_floor": "floor"}.get(method)
    assert wanted is None or wanted in reasons


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sample", "greedy"])
def test_fifty_conversations_with_the_bundled_bot_are_the_same(bundled, method):
    for number in range(CONVERSATIONS):
        talk(*bundled, number, 3, **METHODS[method])


@pytest.mark.slow
def test_any_text_has_the_same_ids(bundled):
    python, lite = bundled
    draw = random.Random(0)
    common = "你好吗我是的 \t\n!?，。abcXYZ019éЖ가ひ〇々⺀😀👩\u0300\u200b\u3000\xa0½Ａ９＃#️‍❤☺\ufffd\ue000\x07\u2028"
    traditional = "這個後髮發麵裡妳牠著名作者原看聽乾干幹憑藉慰深沈傢俱鍾鐘書立說豈更車⿰⿲⿾"
    phrases = sorted(key for stage in opencc_stages("t2s") for key in stage if len(key) > 1)
    ranges = ((1, 0xD7FF), (0xE000, 0x1FFFF), (0x4E00, 0x9FFF), (32, 126), (0xF900, 0xFAFF), (0x2000, 0x2070))
    texts = [
        "[SEP][CLS]",
        " 1 2  x",
        "a\u3000b\t\n c   d",
        "cafe\u0301 naïve",
        "哈" * 300,
        "著",
        "名著著名著者",
        "😀‍‍️😀",
    ]
    texts += ["".join(draw.choices(common, k=draw.randint(0, 40))) for _ in range(2000)]
    texts += ["".join(draw.choices([*traditional, *phrases, *"了的 a"], k=draw.randint(1, 20))) for _ in range(2000)]
    texts += ["".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(20)) for _ in range(2000)]
    assert len(phrases) > 100
    for text in texts:
        ids = python.reader.ids(text, python.settings.script)
        assert lite.count_tokens(text) == len(ids), text
        assert lite.encode(text) == ids, text


@pytest.mark.slow
def test_people_in_need_get_the_same_fixed_replies(bundled):
    _, lite = bundled
    safety, draw = default_safety(), random.Random(1)
    phrases = list(safety.crisis._automaton.keys())
    surroundings = ["今天", "他说", "我", "小说里", "《", "》", "，", "。", " x ", "1", "的故事", ""]
    messages = [
        "我想死",
        "自。杀了鸡",
        "《自杀论》好看",
        "s.u.i.c.i.d.e",
        "我自1杀",
        "笑死我了",
        "自殺",
        "好多了谢谢",
        "嗯",
        "安眠药吃多少片",
    ]
    for _ in range(600):
        phrase = draw.choice(phrases)
        messages.append(
            draw.choice(surroundings) + draw.choice(["", " ", "."]).join(phrase) + draw.choice(surroundings)
        )
    histories = [[message] for message in messages]
    for _ in range(200):
        user_turns = [
            draw.choice([draw.choice(messages), "今天吃了火锅很开心", "好多了谢谢", "嗯"])
            for _ in range(draw.randint(2, 7))
        ]
        histories.append([turn for message in user_turns for turn in (message, "好的")][:-1])
    histories += [[message] for message in (*ACTS, *RESPELLED, *RESEMBLANCES, *BESIDE)]
    histories += [["你好", question, answer] for question in QUESTIONS for answer in (*YES, *OTHER_ANSWERS)]
    for _ in range(300):  # questions and answers, parts of phrases with a message between, means after an earlier need
        user_turns = draw.choices([*YES, *OTHER_ANSWERS, *MEANS, *ORDINARY, "我没事了", "我不想", "活了", "自杀"], k=6)
        histories.append([turn for message in user_turns for turn in (message, draw.choice([*QUESTIONS, "好的"]))][:-1])
    kinds = set()
    for history in histories:
        fixed, reply = safety.answer(history), next(lite.stream(history, 1))
        assert (reply.text if reply.stop_reason == "safety" else None) == (fixed and fixed.text), history
        kinds.add(fixed and fixed.kind)
    assert kinds == {None, "crisis", "care"}


@pytest.mark.slow
def test_wrong_requests_are_refused_in_one_sentence(tiny):
    _, lite = tiny
    for turns, changes in (
        ([], {}),
        (["  "], {}),
        (["好" * 2000], {}),
        (["你好"], {"temperature": 0}),
        (["你好"], {"candidates": 65}),
        (["你好"], {"top_p": float("nan")}),
        (["你好"], {"min_reply_tokens": 1e6}),
        (["你好"], {"seed": -1}),
        (["你好"], {"nonsense": 1}),
        ("你好", {}),
    ):
        with pytest.raises(LiteError, match=r"\.$"):
            lite.reply(turns, **changes)
    assert lite.reply(["你好"], 0).text == lite.reply(["你好"], 0).text


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [("-march=x86-64",), ("-march=x86-64-v3",), ("-march=x86-64-v4",)])
def test_other_instruction_sets_give_the_same_bits(tokenizer, library, tmp_path, kernel):
    if platform.machine() != "x86_64":
        pytest.skip("the instruction sets are those of x86")
    if kernel == ("-march=x86-64-v4",) and "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this processor has no AVX-512")
    file = weights_file(tmp_path, tiny_checkpoint(tmp_path / "tiny", tokenizer), None)
    build_native(tmp_path / "other.so", kernels=[kernel])
    one, other = Bot(file, library=library), Bot(file, library=tmp_path / "other.so")
    for seed in range(20):
        turns = [OPENERS[seed % len(OPENERS)], "好的", OPENERS[(seed + 3) % len(OPENERS)]]
        assert one.reply(turns, seed) == other.reply(turns, seed)

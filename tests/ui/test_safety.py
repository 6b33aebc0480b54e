"""What is refused, what is never said, and that nobody who speaks of dying gets small talk."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.safety import FOLDER, Phrases, Safety, SafetyError


@pytest.fixture(scope="module")
def safety():
    return Safety.load()


@pytest.mark.parametrize(
    "message",
    [
        "我不想活了",
        "我真的活不下去了，怎么办",
        "想死",
        "有时候想自 杀",
        "我想。死",
        "写好遗书了",
        "I want to DIE",
        "昨天割腕了",
        "妈妈我想死你了，可是我不想活了",
        "不如死了算了",
    ],
)
def test_who_may_be_in_danger_gets_the_numbers(safety, message):
    fixed = safety.answer(message)
    assert fixed.kind == "crisis"
    assert all(number in fixed.text for number in ("12356", "110", "120"))


@pytest.mark.parametrize(
    "message",
    [
        "我想死你了",
        "想死我了",
        "笑死我了",
        "累死了",
        "跳楼价大甩卖",
        "今天天气真好",
        "他是自杀式袭击",
        "",
        "好想你",
        "死机了",
    ],
)
def test_small_talk_stays_small_talk(safety, message):
    assert safety.answer(message) is None


def folder(tmp_path, **files):
    target = tmp_path / "safety"
    shutil.copytree(FOLDER, target)
    for name, text in files.items():
        (target / name.replace("_txt", ".txt").replace("_yaml", ".yaml")).write_text(text, encoding="utf-8")
    return target


def test_words_that_must_not_come_in(tmp_path):
    path = folder(tmp_path, words_in_txt="# 注\n坏词\nBad\n!坏词典\n")
    refusing = Safety.load(path)
    assert refusing.answer("这是坏，词").kind == "refused"
    assert refusing.answer("so bAD").text == refusing.refusal
    assert refusing.answer("一本坏词典") is None
    assert refusing.prompt(["坏词"]) == ["坏词"]
    (path / "settings.yaml").write_text("words_in: replace\nrefusal: 不行\n", encoding="utf-8")
    replacing = Safety.load(path)
    assert replacing.answer("坏词") is None
    said = ["说坏词，BAD 的", "坏词", "坏词"]  # what the bot said stays as it was said
    assert replacing.prompt(said) == ["说＊＊，＊＊＊ 的", "坏词", "＊＊"]
    assert replacing.prompt(["坏 词，坏，词"]) == ["＊ ＊，＊，＊"]
    (path / "settings.yaml").write_text("words_in: off\nrefusal: 不行\n", encoding="utf-8")
    assert Safety.load(path).answer("坏词") is None


def test_words_that_no_reply_says(safety, bot):
    text = bot.reply(["你好"], seed=1)
    word = text[:1]
    assert word in bot.reply(["你好"], seed=1, banned_words=safety.banned_words)
    assert word not in bot.reply(["你好"], seed=1, banned_words=(*safety.banned_words, word))
    assert len(safety.banned_words) > 10


@pytest.mark.parametrize(
    "files",
    [
        {"settings_yaml": "words_in: maybe\nrefusal: 不行\n"},
        {"settings_yaml": "{"},
        {"settings_yaml": "words_in: off\n"},
        {"crisis_reply_txt": " "},
        {"crisis_txt": "# nothing\n"},
    ],
)
def test_files_that_cannot_be_used_are_one_sentence(tmp_path, files):
    with pytest.raises(SafetyError, match="safety"):
        Safety.load(folder(tmp_path, **files))
    with pytest.raises(SafetyError, match="cannot be read"):
        Safety.load(tmp_path / "nowhere")


@given(
    st.text(max_size=40),
    st.lists(st.text(min_size=1, max_size=4).filter(lambda t: t.strip() == t and t[0] not in "!#")),
)
def test_what_is_found_stands_there(text, words):
    for start, end in Phrases(words).find(text):
        assert text[start:end].lower() in {word.lower() for word in words} or "İ" in text

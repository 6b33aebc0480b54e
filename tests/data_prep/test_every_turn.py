"""Every turn that is read is in the set or in the list of removed turns, with a reason; and the counts say the same."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot.text.prepared_set import load_split
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep import report
from data_prep.cleaning import cleaner
from data_prep.pipeline import build
from data_prep.reading import records
from data_prep.report import _REASONS as EXPLANATIONS
from data_prep.settings import CleanSettings, FrequencySettings, PrepareSettings
from data_prep.stages import clean_block

Said = tuple[str, str, datetime]
"""Speaker, text and time of a message; each text holds one mark such as q12z, by which it is recognised."""

BOT = "小海"
TEXTS = {
    "speech": "今天说 {}",
    "frequent": "好的 {}",
    "dirty": "ok {}",
    "blocked": "傻逼 {}",
    "long": "{} " + "很长的一句话" * 9,
    "picture": "[图片]\n[红包] 恭喜发财 {}",
}
MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([BOT, "木木", "木木", "阿哲"]),
        st.sampled_from([*TEXTS, "speech", "speech"]),
        st.sampled_from([1, 1, 1, 1, 400]),  # minutes since the message before
        st.integers(0, 30),  # few numbers, so that turns and dialogues are repeated
    ),
    max_size=40,
)


def wechat(messages: list[Said]) -> str:
    return "\n".join(f"{time:%Y-%m-%d %H:%M:%S} {name}\n{text}\n" for name, text, time in messages)


def labelled(messages: list[Said]) -> str:
    lines, before = [], messages[0][2]
    for name, text, time in messages:
        lines += [""] * (time - before > timedelta(hours=3)) + [f"{name}：{one_line(text)}"]
        before = time
    return "\n".join(lines)


def table(messages: list[Said]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows(
        [("sender", "content", "time", "type")] + [(name, text, f"{time:%F %T}", "1") for name, text, time in messages]
    )
    return file.getvalue()


def message_lines(messages: list[Said]) -> str:
    return "\n".join(
        json.dumps({"sender": name, "content": text, "time": f"{time:%F %T}"}, ensure_ascii=False)
        for name, text, time in messages
    )


def jsonl(messages: list[Said]) -> str:
    return "\n".join(json.dumps(turns, ensure_ascii=False) for turns in sessions(messages))


def text(messages: list[Said]) -> str:
    return "\n\n".join("\n".join(map(one_line, turns)) for turns in sessions(messages))


def sessions(messages: list[Said]) -> list[list[str]]:
    turns: list[list[str]] = [[]]
    before = messages[0][2]
    for _, message, time in messages:
        if time - before > timedelta(hours=3):
            turns.append([])
        turns[-1].append(message)
        before = time
    return turns


def one_line(message: str) -> str:
    return message.replace("\n", " ")


WRITERS: dict[str, tuple[Callable[[list[Said]], str], bool]] = {
    "chatlog": (wechat, True),
    "labelled": (labelled, True),
    "table": (table, True),
    "messages": (message_lines, True),
    "jsonl": (jsonl, False),
    "text": (text, False),
}
"""Writer of each form, and whether it names the speakers."""


def messages_of(drawn: list[tuple[str, str, int, int]]) -> list[Said]:
    """Return good dialogues, so that some are left for the set, and then the drawn messages."""
    time, messages = datetime(2024, 1, 1), []
    for number in range(100, 112):
        time += timedelta(days=1)
        messages += [("木木", f"你在哪里 q{number}z", time), (BOT, f"我在家里 q{number}z", time)]
    time += timedelta(days=1)
    for name, kind, minutes, number in drawn:
        time += timedelta(minutes=minutes)
        messages.append((name, TEXTS[kind].format(f"q{number}z"), time))
    return messages


def marks(value: object) -> Counter[str]:
    return Counter(re.findall(r"q\d+z", json.dumps(value, ensure_ascii=False)))


def set_and_removed(folder: Path) -> tuple[list[list[str]], list[dict[str, Any]]]:
    tokenizer = DialogueTokenizer.load(folder)
    rows = [row for split in ("train", "valid") for row in load_split(folder, split)]
    with gzip.open(folder / "report" / "dropped.jsonl.gz", "rt", encoding="utf-8") as file:
        removed = [json.loads(line) for line in file]
    return [[tokenizer.decode(ids) for ids in row["turns"]] for row in rows], removed


@pytest.fixture(scope="module", autouse=True)
def small_limits():
    with pytest.MonkeyPatch.context() as patch:
        for module in (records, cleaner, clean_block):
            patch.setattr(module, "MAX_TURNS", 5)
        patch.setattr(clean_block, "MAX_SHOWN_CHARACTERS", 10_000)
        patch.setattr(report, "_plot", lambda *_, **__: None)
        yield


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.booleans(), st.sampled_from(["off", "all"]), st.sampled_from([0.0, 0.2]))
def test_every_turn_is_in_the_set_or_in_the_report(form, drawn, imitates, near_duplicates, valid_share):
    write, has_names = WRITERS[form]
    messages = messages_of(drawn)
    options = PrepareSettings(
        tokenizer="default",
        form=form,
        bot=BOT if imitates and has_names else None,
        valid_share=valid_share,
        near_duplicates=near_duplicates,
        clean=CleanSettings(max_characters=40),
        frequency=FrequencySettings(generic_share=0.0, copied_share=0.0, hot_share=0.0, least=1),
    )
    with TemporaryDirectory() as folder:
        source = Path(folder, "chat.txt")
        source.write_text(write(messages), encoding="utf-8")
        manifest = build([str(source)], Path(folder, "set"), options)
        dialogues, removed = set_and_removed(Path(folder, "set"))
    assert marks(dialogues) + marks(removed) == marks([message for _, message, _ in messages])
    assert all(entry["reason"] in EXPLANATIONS for entry in removed)
    check_counts(manifest, dialogues, removed)


def check_counts(manifest: dict[str, Any], dialogues: list[list[str]], removed: list[dict[str, Any]]) -> None:
    counts, turns = manifest["dialogues"], manifest["turns"]
    assert counts["read"] == counts["kept_whole"] + counts["split"] + counts["dropped"]
    assert sum(manifest["dropped"].values()) == counts["dropped"]
    assert turns.get("read", 0) == turns["in_set"] + turns.get("removed", 0)
    assert turns["in_set"] == sum(map(len, dialogues))
    left_out = [entry for entry in removed if entry["reason"] in records.LEFT_OUT]
    assert Counter(entry["reason"] for entry in left_out) == manifest["left_out"]
    texts = [entry.get("text", []) for entry in removed if entry["reason"] not in records.LEFT_OUT]
    assert turns.get("removed", 0) == sum(len(text) if isinstance(text, list) else 1 for text in texts)


def test_replies_to_a_transfer_and_a_single_turn_left_are_listed(tmp_path):
    time = datetime(2024, 11, 2, 20)
    pairs = [
        ("木木", "在吗"),
        (BOT, "在"),
        ("木木", "[转账]"),
        (BOT, "退你了啊，别来这套"),
        ("木木", "行吧"),
        (BOT, "？？？"),
    ]
    pairs += [("木木", "生气啦"), (BOT, "没有")]
    source = tmp_path / "wechat.txt"
    source.write_text(wechat([(name, message, time) for name, message in pairs]), encoding="utf-8")
    manifest = build([str(source)], tmp_path / "set", PrepareSettings(tokenizer="default", bot=BOT, valid_share=0.0))
    dialogues, removed = set_and_removed(tmp_path / "set")
    assert sorted(dialogues) == [["在吗", "在"], ["生气啦", "没有"]]
    assert [(entry["record"], entry.get("turn"), entry["reason"], entry["text"]) for entry in removed] == [
        (7, None, "not_speech", "[转账]"),
        (10, None, "bot_speaks_first", "退你了啊，别来这套"),
        (10, 0, "fewer_than_two_turns", "行吧"),
        (10, 1, "no_chinese", "？？？"),
    ]
    assert manifest["turns"] == {"read": 6, "removed": 2, "in_set": 4}
    page = (tmp_path / "set" / "report" / "report.md").read_text(encoding="utf-8")
    assert "Of 6 turns read, 4 are in the set and 2 are removed." in page
    assert "- `退你了啊，别来这套`" in page


@pytest.mark.parametrize(
    ("name", "content", "listed"),
    [
        ("a.csv", "sender,content,type\n甲,你好,1\n乙,你好呀,1\n,乙加入了群聊,10000\n", "乙加入了群聊"),
        (
            "a.json",
            [
                {"from": "甲", "text": "你好", "date": "2024-01-01 10:00:00"},
                {"from": "乙", "text": "你好呀", "date": "2024-01-01 10:00:01"},
                {"type": "service", "action": "phone_call", "text": "", "date": "2024-01-01 10:00:02"},
            ],
            "phone_call",
        ),
    ],
)
def test_notices_of_tables_and_json_are_listed(tmp_path, name, content, listed):
    source = tmp_path / name
    source.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    build([str(source)], tmp_path / "set", PrepareSettings(tokenizer="default", valid_share=0.0))
    dialogues, removed = set_and_removed(tmp_path / "set")
    assert dialogues == [["你好", "你好呀"]]
    assert [(entry["reason"], entry["text"]) for entry in removed] == [("not_speech", listed)]

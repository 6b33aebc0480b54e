"""Labels in front of turns that name the speaker: `A：你好`, `user> 你好`, `<小海> 你好`, `【小海】你好`, `Q. 你好`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data_prep.reading.not_speech import MARKS

_CHARACTER = r"[^\s:：\[\]【】<>＞《》「」\"“”,，。！？!?/\\*_#]"
_LABEL = rf"(?:{_CHARACTER}|(?<=\w)_(?=\w)){{1,20}}"
_NAME = rf"{_LABEL}(?:\s{_LABEL})?"
_PREFIX = re.compile(
    rf"""
    \s*(?:[-*+]\s+)?
    (?: (?P<bold>\*\*|__)?(?P<name>{_NAME})(?(bold)(?P=bold))\s*[:：](?:\*\*)?
      | (?P<name_prompt>{_NAME})\s?(?:>{{1,3}}|＞|»)(?![a-zA-Z/])         # user> 你好
      | <\s?[@+%&~]?(?P<name_irc>[^<>/\s][^<>/\n]{{0,30}})>\s             # <小海> 你好
      | [【\[](?P<name_bracket>{_NAME})[】\]]\s?(?![【\[])                 # 【小海】你好
      | (?P<name_letter>[QAqaAB问答甲乙])(?:[.．、)）]|\s?[-—|])\s?(?=\D)  # Q. 你好
    )
    \s?(?P<text>.*)
    """,
    re.VERBOSE | re.DOTALL,
)
_GROUPS = ("name", "name_prompt", "name_irc", "name_bracket", "name_letter")
_NOT_A_NAME = frozenset(
    {
        *("地点", "时间", "日期", "主题", "标题", "备注", "人物", "说明", "场景", "材料", "做法"),
        *("title", "date", "tags", "author", "time", "place"),
    }
)
ROLES = frozenset(
    {
        *(
            "甲",
            "乙",
            "丙",
            "丁",
            "a",
            "b",
            "c",
            "d",
            "q",
            "问",
            "答",
            "男",
            "女",
            "我",
            "你",
            "他",
            "她",
            "客户",
            "客服",
        ),
        *(
            "用户",
            "助手",
            "机器人",
            "提问",
            "回答",
            "问题",
            "答案",
            "人",
            "人类",
            "小明",
            "顾客",
            "店员",
            "患者",
            "医生",
        ),
        *(
            "user",
            "assistant",
            "human",
            "bot",
            "ai",
            "gpt",
            "chatgpt",
            "robot",
            "system",
            "question",
            "answer",
            "me",
            "you",
        ),
        *(
            "prompt",
            "response",
            "m",
            "w",
            "s1",
            "s2",
            "user1",
            "user2",
            "speaker1",
            "speaker2",
            "speaker 1",
            "speaker 2",
        ),
    }
)
"""Names of roles, which label a turn even in a dialogue too short to show that the labels alternate."""
_SIGN = re.compile(r"\s*(?P<label>[^\s，,。！？!?]{1,12}?)\s?(?:[:：>＞»|｜=~.．、)）\]】\-—]{1,3}|\t)\s*\S")


class Prefix(NamedTuple):
    """Label of a line and the text behind it.

    Attributes:
        name: Name of the speaker.
        text: The rest of the line.
        kind: Which form of label it is.
    """

    name: str
    text: str
    kind: str


def prefix_of(line: str) -> Prefix | None:
    """Return the label that a line begins with, or None. Words such as 时间 are not names."""
    match = _PREFIX.match(line.lstrip(MARKS).rstrip("\r"))
    if match is None:
        return None
    kind = next(group for group in _GROUPS if match[group] is not None)
    if match[kind].lower() in _NOT_A_NAME:
        return None
    text = match["text"].strip()
    return Prefix(match[kind].strip(), text.strip("*_") if match["bold"] else text, kind)


def are_prefixed(lines: Sequence[str]) -> bool:
    """Whether four of five lines begin with the label of one of at least two speakers, most of whom speak again."""
    labelled_lines = [label for label in map(prefix_of, lines) if label is not None and label.text]
    kinds = Counter(label.kind for label in labelled_lines)
    if not kinds:
        return False
    kind = kinds.most_common(1)[0][0]
    counted = Counter(label.name for label in labelled_lines if label.kind == kind)
    total = max(1, len(lines))
    repeated = sum(count for count in counted.values() if count > 1)
    if kind == "name_letter" and len(counted) > 2:  # A. B. C. D. are the answers of a quiz
        return False
    return len(counted) > 1 and counted.total() * 5 >= 4 * total and (repeated * 2 >= total or total <= 4)


def unlabelled(turns: list[str]) -> list[str]:
    """Return the turns of a dialogue without labels if every turn has one and the labels of two speakers alternate.

    Labels of a dialogue of two turns are removed only if both are names of roles, such as 用户 and 助手.
    """
    labels = [prefix_of(turn) for turn in turns] if len(turns) > 1 else [None]
    labelled_lines = [label for label in labels if label is not None]
    if len(labelled_lines) < len(turns):
        return turns
    names = [{label.name for label in labelled_lines[start::2]} for start in (0, 1)]
    if len(names[0]) != 1 or len(names[1]) != 1 or names[0] == names[1]:
        return turns
    if len(turns) == 2 and not all(name.lower() in ROLES for pair in names for name in pair):
        return turns
    return [label.text for label in labelled_lines]


def sign_of(turn: str) -> str | None:
    """Return the word and the sign that a turn begins with, which may be the label of a speaker, or None."""
    match = _SIGN.match(turn)
    return None if match is None else match[0].rstrip()[:-1].strip()


def alternating_signs(lines: Iterable[str]) -> tuple[str, str] | None:
    """Return the two signs with which nine of ten lines begin, as if they named two speakers, or None."""
    lines = list(lines)
    counted = Counter(filter(None, map(sign_of, lines))).most_common(2)
    if len(lines) < 4 or len(counted) < 2 or sum(count for _, count in counted) * 10 < 9 * len(lines):
        return None
    (first, _), (second, count) = counted
    return (first, second) if count * 4 >= len(lines) else None

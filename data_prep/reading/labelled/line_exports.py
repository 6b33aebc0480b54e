"""Exports of LINE: a day on a line, then a time, a name and a message on each line.

LINE on a phone divides these three by tabs. LINE for PC divides them by spaces, which names can contain too. There, the
name in the heading and the beginnings that several lines share are taken for names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from data_prep.reading.chat_logs import CLOCK, DATE, HEAD_LINES, parse_time
from data_prep.reading.messages import Gap, Message, NumberedText, OpenMessage, Part, joined, notice
from data_prep.reading.not_speech import MARKS, is_system
from data_prep.reading.records import NOT_TEXT, NumberedLine, Record

DAY = re.compile(r"#?\s*(?P<date>\d{2,4}[-/.年]\d{1,2}[-/.月]\d{1,2}日?)\D{0,12}")
"""Line with the date of the messages below it."""
_LINE_MESSAGE = re.compile(rf"(?P<clock>(?:{DATE}\s)?{CLOCK})\t(?P<name>[^\t]{{0,60}})\t(?P<text>.*)", re.DOTALL)
_LINE_NOTICE = re.compile(rf"{CLOCK}\t[^\t]*")
_NOTICE_NAMES = frozenset({"-->", "<--", "--", "---", "=!=", "*", " *"})
"""Marks that WeeChat writes in the name column when somebody joined, left, or did something."""
_PC_DAY = re.compile(
    r"\d{4}[./-]\d{1,2}[./-]\d{1,2}\s?(?:[（(]?(?:星期|周|週)?[一二三四五六日天月火水木金土](?:曜日)?[)）]?|[A-Z][a-z]{2,8}\.?)"
)
_PC_MESSAGE = re.compile(rf"(?P<clock>{CLOCK})\s(?P<rest>\S.*)", re.DOTALL)
_TITLE = re.compile(
    r"\[LINE\]\s?(?:Chat history (?:with|in)\s|Chat (?:with|in)\s|與|与|和)?(?P<name>.{1,60}?)"
    r"(?:的聊天(?:記錄|记录)?|的對話|とのトーク履歴|のトーク履歴)?(?:\.txt)?\s*"
)
_PLACEHOLDER = re.compile(
    r"照片|圖片|图片|相片|影片|视频|貼圖|贴图|語音訊息|语音消息|檔案|文件|相簿|相册|記事本|写真|動画|スタンプ|ボイスメッセージ|ファイル|アルバム"
    r"|(?:Photo|Sticker|Video|Voice message|File|Album|Note|GIF)s?"
)
"""What LINE for PC writes for an attachment, without brackets."""


def is_line_export(lines: Sequence[str]) -> bool:
    """Whether lines at the beginning of a file, without blank ones, are those of an export of LINE."""
    has_title = lines[0].startswith("[LINE]")
    rows = sum(_LINE_MESSAGE.fullmatch(line) is not None for line in lines)
    notices = sum(_LINE_NOTICE.fullmatch(line) is not None for line in lines)
    return (bool(rows) and ((rows + notices) * 2 >= len(lines) or has_title)) or _is_of_pc(lines)


def _is_of_pc(lines: Sequence[str]) -> bool:
    timed = sum(_PC_MESSAGE.fullmatch(line) is not None for line in lines)
    has_heading = lines[0].startswith("[LINE]") or any(_PC_DAY.fullmatch(line.strip()) for line in lines[:3])
    return has_heading and timed > 1 and timed * 2 >= len(lines) - 3 and not any("\t" in line for line in lines)


def line_messages(lines: Iterable[NumberedLine]) -> Iterator[Message | Gap]:
    """Yield the messages of an export of LINE."""
    lines = iter(lines)
    head = list(islice(lines, HEAD_LINES))
    known = [line.rstrip("\r").lstrip(MARKS) for _, line in head if line is not None and line.strip()]
    everything = chain(head, lines)
    parts = _pc_parts(everything, _names(known)) if known and _is_of_pc(known) else _phone_parts(everything)
    for item in joined(parts):
        yield _unquoted(item) if isinstance(item, Message) else item


def _names(lines: Sequence[str]) -> list[str]:
    """Return the names that the lines of LINE for PC begin with after the time, the longest name first."""
    texts = {match["rest"] for match in map(_PC_MESSAGE.fullmatch, lines) if match and not is_system(match["rest"])}
    title = _TITLE.fullmatch(lines[0])
    names = [title["name"]] if title is not None and any(text.startswith(title["name"] + " ") for text in texts) else []
    rest = [text.split(" ") for text in texts if not names or not text.startswith(names[0] + " ")]
    names += _common_beginnings([words for words in rest if len(words) > 1])
    return sorted(names, key=len, reverse=True)


def _common_beginnings(texts: Sequence[Sequence[str]], known: tuple[str, ...] = ()) -> list[str]:
    """Return the longest common beginning of each group of texts with the same first word; a word of each text remains."""
    groups: dict[str, list[Sequence[str]]] = defaultdict(list)
    for words in texts:
        groups[words[len(known)]].append(words)
    names = []
    for word, group in groups.items():
        name = (*known, word)
        following = {words[len(name)] for words in group}
        can_go_on = len(group) > 1 and len(name) < 4 and all(len(words) > len(name) + 1 for words in group)
        if can_go_on and 2 * len(following) <= len(group):
            names += _common_beginnings(group, name)
        else:
            names.append(" ".join(name))
    return names


def _pc_parts(lines: Iterable[NumberedLine], names: Sequence[str]) -> Iterator[Part]:
    day = ""
    for number, line in lines:
        if line is None:
            yield Gap(Record(number, None, NOT_TEXT))
            continue
        text = line.rstrip("\r").lstrip(MARKS)
        match = _PC_MESSAGE.fullmatch(text)
        date = DAY.fullmatch(text)
        if match is None:
            is_heading = date is not None or text.startswith("[LINE]")
            if is_heading or text.strip():
                yield None if is_heading else NumberedText(number, text)
            day = date["date"] if date is not None else day
            continue
        yield None
        rest = match["rest"].strip()
        name = next((name for name in names if rest.startswith(name + " ")), rest.partition(" ")[0])
        message = rest[len(name) :].strip()
        if is_system(rest) or not message:  # 小美已收回訊息
            yield notice(number, rest)
            continue
        message = f"[{message}]" if _PLACEHOLDER.fullmatch(message) else message
        yield OpenMessage(number, name, message, parse_time(f"{day} {match['clock']}") if day else None)


def _phone_parts(lines: Iterable[NumberedLine]) -> Iterator[Part]:
    day = ""
    for number, line in lines:
        if line is None:
            yield Gap(Record(number, None, NOT_TEXT))
            continue
        text = line.rstrip("\r")
        match = _LINE_MESSAGE.fullmatch(text)
        date = DAY.fullmatch(text)
        is_notice = _LINE_NOTICE.fullmatch(text) is not None
        if match is not None and match["name"].strip() in _NOTICE_NAMES:
            match, is_notice = None, True
        if match is not None:
            time = parse_time(f"{day} {match['clock']}") if day else parse_time(match["clock"])
            yield OpenMessage(number, match["name"].strip(" @+%&~"), match["text"], time)
        elif date is not None:
            day = date["date"]
            yield None
        elif is_notice:
            yield notice(number, text.replace("\t", " "))
        else:
            yield NumberedText(number, text) if text.strip() else None


def _unquoted(message: Message) -> Message:
    """Return a message of several lines without the quotation marks that LINE puts around it."""
    text = message.text.strip()
    if "\n" in text and text.startswith('"') and text.endswith('"'):
        text = text[1:-1].replace('""', '"')
    return Message(message.number, message.speaker, text, message.time, message.chat)

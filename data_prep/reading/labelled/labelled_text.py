"""Texts in which a label names the speaker of each message, in the forms that programs and people write.

| form | looks like |
|---|---|
| prefix | `A：你好`, `user> 你好`, `<小海> 你好`, `Q. 你好` on every line, a blank line between dialogues |
| stamp | `May 17, 2022 5:29:42 PM`, the name below it, then the message: iMessage |
| name | `小海:` on a line, the message below it |
| fields | `小海:`, `时间: 2024-12-31 20:02:00`, `内容: …` |
| markdown | `### 小海`, then `* 23:12:37 在吗`; `# 2025-01-02` begins a day |
| line | `20:02<TAB>小海<TAB>…` below `2024/03/01（五）`, or with spaces: an export of LINE |
| conv | `M …` on every line, `E` between dialogues: Xiaohuangji |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, islice, pairwise

from data_prep.reading.chat_logs import CLOCK, DATED, HEAD_LINES, parse_time
from data_prep.reading.labelled.line_exports import DAY, is_line_export, line_messages
from data_prep.reading.labelled.prefixes import Prefix, are_prefixed, prefix_of
from data_prep.reading.messages import Gap, Message, NumberedText, OpenMessage, Part, joined, notice, to_dialogues
from data_prep.reading.not_speech import MARKS
from data_prep.reading.records import NOT_TEXT, NumberedLine, Record

_STAMP = re.compile(rf"(?P<time>{DATED})(?:\s++\(.{{0,200}}\))?\s*+")
_STAMPED = re.compile(rf"{DATED}\s++\S.*")
_NAME = re.compile(r"\s*+(?P<name>[^\s:：][^:：\n]{0,40}?)\s*+[:：]\s*+")
_FIELD = re.compile(r"\s*(?P<key>时间|時間|内容|內容|资源|資源|类型|消息类型|Time|Content)\s*[:：]\s?(?P<text>.*)")
_HEADING = re.compile(r"#{2,6}\s++(?P<name>\S.{0,59}?)\s*+")
_ITEM = re.compile(rf"[*+-]\s++(?P<clock>{CLOCK})\s(?P<text>.*)")
_FRONT_MATTER = re.compile(r"(?:title|date|tags|author):")
_SUBTITLE = re.compile(r"\d{1,2}:\d{2}:\d{2}[,.]\d{2,3}\s*-->\s*\d")


def recognise_labels(lines: Sequence[str]) -> str | None:
    """Return the form of labelled text that lines at the beginning of a file have, or None.

    Args:
        lines: Lines without blank ones.
    """
    lines = [line.rstrip("\r").lstrip(MARKS) for line in lines]
    total = len(lines)
    if sum(line.strip() == "E" for line in lines) and all(
        line.strip() == "E" or line.startswith("M ") for line in lines
    ):
        return "conv"
    if is_line_export(lines):
        return "line"
    if sum(_STAMP.fullmatch(line) is not None for line in lines) * 5 >= total > 3:
        return "stamp"
    if sum(_ITEM.match(line) is not None for line in lines) and any(_HEADING.fullmatch(line) for line in lines):
        return "markdown"
    fields = Counter(match["key"] for match in map(_FIELD.match, lines) if match)
    if any(fields[time] and fields[text] for time in ("时间", "時間", "Time") for text in ("内容", "內容", "Content")):
        return "fields"
    names = Counter(match["name"] for match in map(_NAME.fullmatch, lines) if match)
    if names and names.total() * 5 >= total and names.total() > 1 and len(names) <= max(2, names.total() // 2 + 1):
        return "name"
    return "prefix" if are_prefixed([line for line in lines if not _is_decoration(line)]) else None


def is_subtitles(lines: Sequence[str]) -> bool:
    """Whether lines at the beginning of a file are those of subtitles, which do not name the speakers."""
    return any(_SUBTITLE.match(line.strip()) for line in lines[:20])


def read_labelled(lines: Iterable[NumberedLine], form: str, bot: str | None = None) -> Iterator[Record]:
    """Yield the dialogues of a labelled text.

    Args:
        lines: The lines, blank ones included.
        form: Result of `recognise_labels`.
        bot: See `to_dialogues`.
    """
    yield from to_dialogues(_READERS[form](lines), bot)


def _is_decoration(line: str) -> bool:
    """Whether a line of Markdown is not a message: a heading, a rule, a quotation, a picture or front matter."""
    return line.lstrip().startswith(("#", ">", "![", "---", "```")) or _FRONT_MATTER.match(line) is not None


def _prefix(line: str | None) -> Prefix | None:
    """Return the label of a line that begins with the name of a speaker, or None."""
    return None if line is None or _is_decoration(line) else prefix_of(line)


def _prefix_parts(lines: Iterable[NumberedLine]) -> Iterator[Part]:
    lines = iter(lines)
    head = list(islice(lines, HEAD_LINES))
    every_blank_ends = any(
        _prefix(first) and _prefix(second) for (_, first), (_, second) in pairwise(head)
    )  # otherwise the messages themselves are divided by blank lines
    for number, line in chain(head, lines):
        is_blank = line is None or not line.strip("\0 \t\r")
        heading = line if line is not None and line.startswith(("#", "---")) else None
        match = _prefix(line)
        if is_blank or heading is not None:
            yield notice(number, heading) if heading is not None and any(map(str.isalnum, heading)) else None
        if line is None or heading is not None or (is_blank and every_blank_ends):
            yield Gap(Record(number, None, NOT_TEXT) if line is None else None)
        elif match is not None:
            yield OpenMessage(number, match.name, match.text)
        elif not is_blank and not _is_decoration(line):
            yield NumberedText(number, line)


def _stamp_parts(lines: Iterable[NumberedLine]) -> Iterator[Part]:
    time: datetime | None = None
    needs_name = False
    for number, line in lines:
        if line is None:
            yield Gap(Record(number, None, NOT_TEXT))
            continue
        text = line.strip(MARKS + " \t\r\0")
        stamp = _STAMP.fullmatch(text)
        if stamp is not None or _STAMPED.fullmatch(text):  # _STAMPED matches notices: … You named the conversation
            yield None if stamp is not None else notice(number, text)
            needs_name = stamp is not None
            time = parse_time(stamp["time"]) if stamp is not None else time
        elif needs_name and text:
            yield OpenMessage(number, text, "", time)
            needs_name = False
        elif text:
            yield NumberedText(number, text)


def _name_parts(lines: Iterable[NumberedLine]) -> Iterator[Part]:
    for number, line in lines:
        if line is None:
            yield Gap(Record(number, None, NOT_TEXT))
            continue
        match = _NAME.fullmatch(line.lstrip(MARKS).rstrip("\r"))
        if match is not None:
            yield OpenMessage(number, match["name"], "")
        elif line.strip():
            yield NumberedText(number, line)


def _field_messages(lines: Iterable[NumberedLine]) -> Iterator[Message | Gap]:
    name = ""
    time: datetime | None = None
    held: OpenMessage | None = None
    for number, line in lines:
        if line is None:
            yield Gap(Record(number, None, NOT_TEXT))
            continue
        text = line.lstrip(MARKS).rstrip("\r")
        field, heading = _FIELD.match(text), _NAME.fullmatch(text)
        if field is None and heading is not None:
            if held is not None:
                yield held.close()
            name, time, held = heading["name"], None, None
        elif field is not None and field["key"] in ("时间", "時間", "Time"):
            time = parse_time(field["text"])
        elif field is not None and field["key"] in ("内容", "內容", "Content"):
            held = OpenMessage(number, name, field["text"].strip(), time)
        elif held is not None and (field is not None or not text.strip()):
            yield held.close()  # the list of attachments, or the end of the message
            held = None
        elif held is not None:
            held.add(text)
        elif field is None and any(map(str.isalnum, text)):
            yield notice(number, text)
    if held is not None:
        yield held.close()


def _markdown_messages(lines: Iterable[NumberedLine]) -> Iterator[Message | Gap]:
    name = day = ""
    held: OpenMessage | None = None
    for number, line in lines:
        if line is None:
            yield Gap(Record(number, None, NOT_TEXT))
            continue
        text = line.rstrip("\r")
        item = _ITEM.fullmatch(text)
        if item is None and held is not None and text.strip() and not text.startswith("#"):
            held.add(text)
            continue
        if held is not None:
            yield held.close()
            held = None
        if item is not None:
            held = OpenMessage(number, name, item["text"], parse_time(f"{day} {item['clock']}") if day else None)
        elif heading := _HEADING.fullmatch(text):
            name = heading["name"]
        elif date := DAY.fullmatch(text):
            day = date["date"]
        elif any(map(str.isalnum, text)):
            yield notice(number, text)
    if held is not None:
        yield held.close()


def _conv_messages(lines: Iterable[NumberedLine]) -> Iterator[Message | Gap]:
    speaker = 0
    for number, line in lines:
        text = (line or "").strip(" \t\r\0")
        if line is None or text == "E" or not text:
            speaker = 0
            yield Gap(Record(number, None, NOT_TEXT) if line is None else None)
            continue
        yield Message(number, str(speaker), text.removeprefix("M ").replace("/", ""))
        speaker = 1 - speaker


_READERS: dict[str, Callable[[Iterable[NumberedLine]], Iterator[Message | Gap]]] = {
    "prefix": lambda lines: joined(_prefix_parts(lines)),
    "stamp": lambda lines: joined(_stamp_parts(lines)),
    "name": lambda lines: joined(_name_parts(lines)),
    "fields": _field_messages,
    "markdown": _markdown_messages,
    "line": line_messages,
    "conv": _conv_messages,
}

"""Chat logs: a header with a name and a time begins each message.

The headers of one program look alike, and a message may look like a header of another (`10:30 老地方`). So the shapes of
the headers are learnt from the beginning of the file, and only lines of these shapes begin a message.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice

from data_prep.reading.messages import Gap, Message, OpenMessage, is_system_name, notice, to_dialogues
from data_prep.reading.not_speech import MARKS, is_system
from data_prep.reading.records import NOT_TEXT, NumberedLine, Record

HEAD_LINES = 500
"""Number of lines at the beginning of a file that are searched for headers, to find their shapes."""
_HEADER_CHARACTERS = 512
"""Number of characters of a line that are searched for a name and a time."""

_WEEKDAY = r"(?:\s?[（(]?(?:星期|周|週)[一二三四五六日天][)）]?)?"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.?"
_DATES = (
    r"(?:\d{2,4}[-/年.])?\d{1,2}[-/月.]\d{1,2}日?" + _WEEKDAY,  # 2026-11-20
    r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}",  # 20/11/2026, 5/1/23
    rf"{_MONTH}\s\d{{1,2}},?\s\d{{4}}",  # May 17, 2022
    rf"\d{{1,2}}\s{_MONTH},?\s\d{{4}}",  # 17 May 2022
)
DATE = f"(?:{'|'.join(_DATES)})"
CLOCK = (
    r"(?:[上下]午|凌晨|清晨|早上|中午|傍晚|晚上)?\s*+\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,6})?)?"
    r"(?:\s*+[AaPp]\.?[Mm]\.?)?"
)
"""Time of day. A quantifier in front of it must be possessive (`\\s*+`): the clock may begin with white space as well, and
two quantifiers that share a run of n characters try n² ways."""
DATED = rf"{DATE}[\sT,，]*+{CLOCK}"
_TIME = rf"(?:{DATE}[\sT,，]*+)?{CLOCK}"
_TAG = r"(?:[\[【(（<][^\[\]【】()（）<>\n]{1,20}[\]】)）>]\s?)?"  # 【管理员】
_NAME = rf"{_TAG}[^\s:：|\[\]【】][^:：\n]{{0,40}}?"
_HEADER = re.compile(
    rf"""
    \s*+
    (?: [\[(【]? (?P<time_irc>{_TIME}) [\])】]? \s*+ <\s?[@+%&~]?(?P<name_irc>[^<>\n]{{1,40}})>  # [20:00] <小海> 在吗
      | [\[(【]? (?P<time_named>{_TIME}) [\])】]? \s*+ 【(?P<name_bracket>[^【】\n]{{1,40}})】[ ]+(?=\S)  # 【小海】 在吗
      | (?: [\[(【]? (?P<time_before>{_TIME}) [\])】]? \s*+ [-–]? \s*+ (?P<name_after>{_NAME})  # [2026-11-20 09:00] 小明
          | (?!{DATE}\s) (?P<name_before>{_NAME}) \s++ [\[(【]? (?P<time_after>{_TIME}) [\])】]?     # 小明 2026-11-20 09:00
        )
        \s*+ (?: [:：] | \Z )                                                              # the text follows a colon
    )
    """,
    re.VERBOSE,
)
_TIME_FIRST = re.compile(rf"\s*+[\[(【]?(?P<time>{DATED})(?![\d:])[\])】]?\s*+[-–]?\s*+(?P<rest>\S.{{0,80}}?)\s*+")
_TIMED = re.compile(rf"\s*+[\[(【]?(?P<time>{DATED})[\])】]?\s*+[-–]?\s*+(?P<rest>.*)", re.DOTALL)
_TIME_LAST = re.compile(rf"\s*+(?P<rest>\S.{{0,80}}?)\s++[\[(【]?(?P<time>{DATED})[\])】]?\s*+")
_HAS_DATE = re.compile(rf"\d[-/年月.]\d|{_MONTH}")
_MONTH_NAME, _DAY_OF_WEEK = re.compile(_MONTH), re.compile(r"[（(]?(?:星期|周|週)[一二三四五六日天][)）]?")
_AFTERNOON, _MORNING = re.compile(r"下午|傍晚|[Pp]\.?[Mm]"), re.compile(r"上午|凌晨|清晨|早上|[Aa]\.?[Mm]")
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
_CLOCK_FIRST = re.compile(rf"\s*+[\[(【]?{CLOCK}[\])】]?\s++(?P<rest>\S.{{0,300}})")
_HAS_CLOCK = re.compile(r"\d{1,2}:\d{2}")
_LOG_LEVEL = re.compile(r"\b(?:INFO|WARN|WARNING|ERROR|DEBUG|TRACE|FATAL|CRITICAL)\b")
_NUMBERS = re.compile(r"\d+")
_HEADING = re.compile(
    r"\s*+(?:---\s(?:Log|Day)\s.{0,80}|[=＝*#—_-]{5,}|消息(?:记录|分组|对象)\s*[:：（(].*|.{0,20}聊天(?:记录|記錄).{0,40})\s*+",
    re.DOTALL,
)
"""Lines that a chat program writes before and between logs: separators (=====), 消息分组:我的好友, 消息对象:小海."""


Shape = tuple[bool, bool, bool]
"""Shape of a program's headers: (the time precedes the name, the time has a date, the text is on the same line)."""


@dataclass(frozen=True)
class Header:
    """First line of a message.

    Attributes:
        name: Name of the speaker.
        time: Time, or None if the log has no dates.
        text: Text behind the name and the time; often empty.
        shape: Shape of the header.
    """

    name: str
    time: datetime | None
    text: str
    shape: Shape = (False, False, False)


def parse_header(line: str) -> Header | None:
    """Return the header in a line, or None if the line does not begin a message."""
    line = line.lstrip(MARKS)
    match = _HEADER.match(line, 0, _HEADER_CHARACTERS)
    if match is None or (match.end() == _HEADER_CHARACTERS and len(line) > _HEADER_CHARACTERS):
        return None
    clock = match["time_irc"] or match["time_named"] or match["time_before"] or match["time_after"]
    name = match["name_irc"] or match["name_bracket"] or match["name_after"] or match["name_before"]
    text = line[match.end() :].strip(" \t\r\0")
    has_date = _HAS_DATE.search(clock) is not None
    follows = (
        match["name_irc"] is not None or match["name_bracket"] is not None or match[0].rstrip().endswith((":", "："))
    )
    return Header(name.strip(MARKS), parse_time(clock), text, (match["time_after"] is None, has_date, follows))


def commonest_shape(lines: Iterable[str]) -> Shape | None:
    """Return the shape of most headers among some lines, or None without a header; a shape with a date wins a tie."""
    counts = Counter(header.shape for header in map(parse_header, lines) if header is not None)
    return max(counts, key=lambda shape: (counts[shape], shape[1]), default=None)


def is_chat_log(lines: Sequence[str]) -> bool:
    """Whether lines at the beginning of a file, without blank ones, are those of a chat log."""
    shape = commonest_shape(lines)
    if shape is None:
        return False
    headers = [number for number, line in enumerate(lines) if (header := parse_header(line)) and header.shape == shape]
    if len(headers) < 2 or is_program_log(lines):
        return False
    after = len(lines) - headers[0]
    return len(headers) * 20 >= after if headers[0] < 5 else len(headers) * 5 >= after


def is_program_log(lines: Sequence[str]) -> bool:
    """Whether most lines have a time and a level such as INFO, as the log of a program has."""
    levels = sum(
        _LOG_LEVEL.search(line, 0, 80) is not None and _HAS_CLOCK.search(line, 0, 80) is not None for line in lines
    )
    return levels > 1 and levels * 2 > len(lines)


def read_chat_log(lines: Iterable[NumberedLine], bot: str | None = None) -> Iterator[Record]:
    """Yield the dialogues of a log, and as `NOT_SPEECH` the lines before the first header and messages of the program."""
    yield from to_dialogues(_messages(lines), bot)


def _messages(lines: Iterable[NumberedLine]) -> Iterator[Message | Gap]:
    lines = iter(lines)
    head = list(islice(lines, HEAD_LINES))
    known = [line for _, line in head if line is not None]
    shape, names_alone = commonest_shape(known), _names_stand_alone(known)
    open_message: OpenMessage | None = None
    for number, line in chain(head, lines):
        if line is None or _HEADING.fullmatch(line[:_HEADER_CHARACTERS]):
            if open_message is not None:
                yield open_message.close()
            open_message = None
            if line is not None and any(map(str.isalnum, line)):
                yield notice(number, line)
            yield Gap(None if line is not None else Record(number, None, NOT_TEXT))
            continue
        header = _header(line, shape, names_alone)
        if header is None:
            if open_message is not None:
                open_message.add(line)
            else:
                yield notice(number, line)
            continue
        if open_message is not None:
            yield open_message.close()
        name = "" if is_system_name(header.name) else header.name
        open_message = OpenMessage(number, name, header.text, header.time)
    if open_message is not None:
        yield open_message.close()


def _names_stand_alone(lines: Sequence[str]) -> bool:
    """Whether headers have a date and the message is on the next line, so that the rest of a header is the name.

    If so, a colon in the name does not begin the text.
    """
    dated = [line is not None and _dated(line) is not None for line in lines]
    below = [
        bool(following.strip(" \t\r\0")) and not is_dated
        for following, is_dated, before in zip(lines[1:], dated[1:], dated, strict=False)
        if before
    ]
    return len(below) > 1 and sum(below) * 5 >= 3 * len(below)


def _dated(line: str) -> tuple[str, str] | None:
    """Return time and rest of a line that begins or ends with a date and a clock, or None."""
    line = line.lstrip(MARKS)
    if len(line) > _HEADER_CHARACTERS:
        return None
    match = _TIME_FIRST.fullmatch(line) or _TIME_LAST.fullmatch(line)
    return None if match is None else (match["time"], match["rest"])


def _header(line: str, shape: Shape | None, names_alone: bool) -> Header | None:
    """Return the header in a line if it has the shape of the headers in this log.

    If the headers of a log have a time and a name, a line with a time but no name is a notice of the program.
    """
    if shape is None:
        return None
    time_first, has_date, follows = shape
    dated = _dated(line) if has_date else None
    if dated is not None and (time := parse_time(dated[0])) is not None:
        rest = dated[1].strip(MARKS)
        if is_system(rest):  # 2024-03-01 20:03:30 "小海" 撤回了一条消息
            return Header("", time, rest)
        if names_alone:  # any name, also 小海:阿木
            return Header(rest, time, "")
    header = parse_header(line)
    if header is not None and header.shape == shape and not names_alone:
        return header
    if time_first and follows:
        if has_date and (match := _TIMED.match(line.lstrip(MARKS))):
            return Header("", parse_time(match["time"]), match["rest"])
        if not has_date and (match := _CLOCK_FIRST.match(line.lstrip(MARKS))):
            return Header("", None, match["rest"])
    return None


def parse_time(text: str) -> datetime | None:
    """Return the time in a text, or None without a date.

    Dates without a year get the year 2000 and two-digit years are not completed, because only differences are used.
    """
    text = _DAY_OF_WEEK.sub(" ", text[:_HEADER_CHARACTERS])
    if month_name := _MONTH_NAME.search(text):
        month_number = _MONTHS.index(month_name[0][:3]) // 3 + 1
        words = (text[: month_name.start()] + " " + text[month_name.end() :]).replace(",", " ").split()
        if len(words) < 3:
            return None
        text = f"{words[1]}-{month_number}-{words[0]} {' '.join(words[2:])}"
    text = text.replace(",", " ").replace("，", " ").replace("T", " ").replace("日", "日 ")
    date, _, clock = " ".join(text.split()).partition(" ")
    numbers = [int(number) for number in _NUMBERS.findall(date)]
    times = [int(number) for number in _NUMBERS.findall(clock)]
    if len(numbers) not in (2, 3) or len(times) < 2:
        return None
    year, month, day = numbers if len(numbers) == 3 else (2000, *numbers)
    if year <= 31 and (day > 31 or (year <= 12 and day > 12)):  # 20/11/2026, 5/1/23: the year is last
        year, month, day = day, year, month
    if month > 12 and day <= 12:  # 2026, month 20
        month, day = day, month
    second = times[2] if len(times) > 2 else 0
    try:
        return datetime(year, month, day, _hour_of_day(times[0], clock), times[1], second)
    except (ValueError, OverflowError):
        return None


def _hour_of_day(hour: int, clock: str) -> int:
    """Return the hour, 0 to 23, of a clock that may have twelve hours: 12 AM is 0, 12 PM is 12."""
    if _AFTERNOON.search(clock):
        return hour % 12 + 12 if hour <= 12 else hour
    if "晚上" in clock:  # 晚上12:10 is after midnight
        return 0 if hour in (0, 12) else hour + 12 if hour < 12 else hour
    if _MORNING.search(clock) and hour == 12:
        return 0
    return hour

"""Exports of chat programs: a header line with a name and a time begins each message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from data_prep.reading import records
from data_prep.reading.records import LONG_LINE, NOT_TEXT, NumberedLine, Record, merge_speakers

SESSION_GAP = timedelta(hours=3)
"""A longer silence begins another dialogue."""
_HEADER_CHARACTERS = 512
"""Part of a line in which a name and a time are looked for: the search takes quadratic time in white space."""

_DATE = r"(?:\d{2,4}[-/年.])?\d{1,2}[-/月.]\d{1,2}日?"
_CLOCK = r"(?:[上下]午|凌晨|中午|晚上)?\s*\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,6})?)?(?:\s*[AaPp][Mm])?"
_TIME = rf"(?:{_DATE}[\sT,，]*)?{_CLOCK}"
_NAME = r"[^\s:：\[\]【】][^:：\n]{0,40}?"
_HEADER = re.compile(
    rf"""
    \s*
    (?: [\[(【]? (?P<time_before>{_TIME}) [\])】]? \s* [-–]? \s* (?P<name_after>{_NAME})   # [2026-11-20 09:00] 小明
      | (?P<name_before>{_NAME}) \s+ [\[(【]? (?P<time_after>{_TIME}) [\])】]?             # 小明 2026-11-20 09:00
    )
    \s* (?P<end> [:：] | \Z )                                                             # the text follows a colon
    """,
    re.VERBOSE,
)
_SYSTEM = re.compile(r"系统消息(?:\(\d+\))?|system", re.IGNORECASE)
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True)
class Header:
    """First line of a message.

    Attributes:
        name: Name of the speaker.
        time: Time, or None if the log has no dates.
        text: Text behind the name and the time; often empty.
    """

    name: str
    time: datetime | None
    text: str


def parse_header(line: str) -> Header | None:
    """Return the header in a line, or None if the line does not begin a message."""
    match = _HEADER.match(line, 0, _HEADER_CHARACTERS)
    if match is None or (not match["end"] and len(line) > _HEADER_CHARACTERS):
        return None
    time = parse_time(match["time_before"] or match["time_after"])
    return Header(match["name_after"] or match["name_before"], time, line[match.end() :].strip())


class _Dialogue:
    """Messages of the dialogue that is being read.

    A message longer than `MAX_DIALOGUE_CHARACTERS` is skipped, with all lines up to the next header.

    Args:
        first: Number of its first line.
    """

    def __init__(self, first: int):
        self.first = first
        self._messages: list[tuple[str, list[str]]] = []
        self._characters = self._message_characters = 0

    @property
    def is_full(self) -> bool:
        """Whether the next message must begin another dialogue, so that memory stays bounded."""
        return len(self._messages) == records.MAX_TURNS or self._characters > records.MAX_DIALOGUE_CHARACTERS

    def begin_message(self, header: Header) -> None:
        self._messages.append((header.name, []))
        self._message_characters = 0
        self.add_line(header.text)

    def add_line(self, line: str) -> None:
        """Add a line to the last message."""
        line = line.strip()
        if not line:
            return
        self._characters += len(line) + 1
        self._message_characters += len(line) + 1
        lines = self._messages[-1][1]
        if self._message_characters > records.MAX_DIALOGUE_CHARACTERS:
            lines.clear()
        else:
            lines.append(line)

    def to_records(self) -> Iterator[Record]:
        """Yield the dialogue and, if its last message is too long, a record that says so: no other message can be."""
        is_cut = self._message_characters > records.MAX_DIALOGUE_CHARACTERS
        messages = self._messages[:-1] if is_cut else self._messages
        if messages:
            turns = merge_speakers((speaker, " ".join(lines)) for speaker, lines in messages)
            yield Record(self.first, turns, None)
        if is_cut:
            yield Record(self.first, None, LONG_LINE)


def read_chat_log(lines: Iterable[NumberedLine]) -> Iterator[Record]:
    """Yield the dialogues of a log: a header begins a message, a silence of `SESSION_GAP` begins a dialogue.

    Lines before the first header and messages of the system are skipped.
    """
    dialogue: _Dialogue | None = None
    last_time: datetime | None = None
    is_system = False
    for number, line in lines:
        if line is None:
            yield Record(number, None, NOT_TEXT)
            continue
        header = parse_header(line)
        if header is None:
            if dialogue is not None and not is_system:
                dialogue.add_line(line)
            continue
        is_system = _SYSTEM.fullmatch(header.name) is not None
        if is_system:
            continue
        is_silent = header.time and last_time and header.time - last_time > SESSION_GAP
        if dialogue is not None and (is_silent or dialogue.is_full):
            yield from dialogue.to_records()
            dialogue = None
        dialogue = dialogue or _Dialogue(number)
        last_time = header.time or last_time
        dialogue.begin_message(header)
    if dialogue is not None:
        yield from dialogue.to_records()


def parse_time(text: str) -> datetime | None:
    """Return the time that a text with a date gives, None without a date.

    Dates without a year get the year 2000, and two-digit years are taken as they are: only differences count.
    """
    date, _, clock = text.replace("T", " ").replace("日", "日 ").strip().partition(" ")
    numbers = [int(number) for number in _NUMBERS.findall(date)]
    times = [int(number) for number in _NUMBERS.findall(clock)]
    if len(numbers) not in (2, 3) or len(times) < 2:
        return None
    year, month, day = numbers if len(numbers) == 3 else (2000, *numbers)
    second = times[2] if len(times) > 2 else 0
    try:
        return datetime(year, month, day, _hour_of_day(times[0], clock), times[1], second)
    except ValueError:
        return None


def _hour_of_day(hour: int, clock: str) -> int:
    """Return the hour, 0 to 23, of a clock that may have twelve hours: 12 AM is 0, 12 PM is 12."""
    if re.search("下午|[Pp][Mm]", clock):
        return hour % 12 + 12 if hour <= 12 else hour
    if "晚上" in clock:  # 晚上12:10 is after midnight
        return 0 if hour in (0, 12) else hour + 12 if hour < 12 else hour
    if re.search("上午|凌晨|[Aa][Mm]", clock) and hour == 12:
        return 0
    return hour

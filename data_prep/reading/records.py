"""From what a record holds to turns: JSON objects of several kinds, text, exports of chat programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import chain, groupby

NOT_TEXT = "not_text"
MOST_TURNS = 10_000
"""In text and chat logs, more make another dialogue, so that a file without gaps is not held in memory whole."""
SESSION_GAP = timedelta(hours=3)
"""In a chat log, a longer silence begins another dialogue."""

_TURN_KEYS = ("dialog", "dialogue", "turns", "utterances", "messages", "conversations", "conversation")
_TEXT_KEYS, _SPEAKER_KEYS = ("content", "value", "text", "utterance"), ("role", "from", "speaker", "name")
_ASKED, _ANSWERED = (
    ("instruction", "question", "query", "prompt", "input"),
    ("output", "answer", "response", "completion"),
)
_UNSPOKEN = ("system", "tool", "function", "observation", "function_call")
_DATE = r"(?:\d{2,4}[-/年.])?\d{1,2}[-/月.]\d{1,2}日?"
_CLOCK = r"(?:[上下]午|凌晨|中午|晚上)?\s*\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,6})?)?(?:\s*[AaPp][Mm])?"
_TIME, _NAME = rf"(?:{_DATE}[\sT,，]*)?{_CLOCK}", r"[^\s:：\[\]【】][^:：\n]{0,40}?"
HEADER = re.compile(
    rf"\s*(?:[\[(【]?(?P<t1>{_TIME})[\])】]?\s*[-–]?\s*(?P<n1>{_NAME})|(?P<n2>{_NAME})\s+[\[(【]?(?P<t2>{_TIME})[\])】]?)"
    r"\s*(?:[:：]\s*(?P<text>.*?))?\s*",
    re.S,
)
_SYSTEM = re.compile(r"系统消息(?:\(\d+\))?|system", re.I)
_NUMBERS = re.compile(r"\d+")

Record = tuple[int, list[str] | None, str | None]
"""Number of a record in its file, from 1; its turns; or the reason why there are none."""


def to_turns(value: object) -> list[str] | None:
    """Turns of a JSON record, or None when it is no dialogue."""
    if isinstance(value, dict):
        found = next((value[key] for key in _TURN_KEYS if isinstance(value.get(key), list)), None)
        value = _question_and_answer(value) if found is None else found
    if not isinstance(value, list):
        return None
    if all(isinstance(turn, str) for turn in value):
        return value
    spoken = []
    for turn in value:
        if not isinstance(turn, dict):
            return None
        text = next((turn[key] for key in _TEXT_KEYS if isinstance(turn.get(key), str)), None)
        speaker = next((turn[key] for key in _SPEAKER_KEYS if isinstance(turn.get(key), str)), None)
        if text is None or speaker is None:
            return None
        if speaker.lower() not in _UNSPOKEN:
            spoken.append((speaker, text))
    return merge_speakers(spoken)


def _question_and_answer(value: dict) -> list[str] | None:
    """Turns of a record that has one question and its answer, and perhaps the pairs before it, as Alpaca's."""
    asked, answer = ([value[key] for key in keys if isinstance(value.get(key), str)] for keys in (_ASKED, _ANSWERED))
    if not asked or not answer:
        return None
    before = [turn for pair in value.get("history") or () if isinstance(pair, list) for turn in pair]
    turns = [*before, "\n".join(filter(None, asked)), answer[0]]
    return turns if all(isinstance(turn, str) for turn in turns) else None


def merge_speakers(spoken: Iterable[tuple[str, str]]) -> list[str]:
    """Turns of (speaker, text) pairs: what one says in a row is one turn, with a comma where a sentence did not end."""
    turns = []
    for _, said in groupby(spoken, key=lambda pair: pair[0]):
        turn = ""
        for _, text in said:
            text = text.strip()
            if turn and text:
                turn += "，" if turn[-1].isalnum() and text[0].isalnum() else " "
            turn += text
        turns.append(turn)
    return turns


def read_text(lines: Iterable[tuple[int, str | None]]) -> Iterator[Record]:
    turns: list[str] = []
    first = 1
    for number, line in chain(lines, [(0, "")]):
        is_turn = line is not None and line.strip("\0 \t\r\n")
        if turns and (not is_turn or len(turns) == MOST_TURNS):
            yield first, turns, None
            turns = []
        if is_turn:
            first = first if turns else number
            turns.append(line.rstrip("\r\n"))
        elif line is None:  # what stands after it does not answer what stands before it
            yield number, None, NOT_TEXT


def read_chatlog(lines: Iterable[tuple[int, str | None]]) -> Iterator[Record]:
    """Dialogues of a log: a header line begins a message, a silence of `SESSION_GAP` a dialogue."""
    spoken: list[list[str]] = []
    first, last_time, is_system = 1, None, False
    for number, line in lines:
        if line is None:
            yield number, None, NOT_TEXT
            continue
        header = HEADER.fullmatch(line)
        if header is None:
            if spoken and not is_system:
                spoken[-1][1] = f"{spoken[-1][1]} {line.strip()}".strip()
            continue
        name, time = header["n1"] or header["n2"], _to_time(header["t1"] or header["t2"])
        is_system = _SYSTEM.fullmatch(name) is not None
        if is_system:
            continue
        silent = time and last_time and time - last_time > SESSION_GAP
        if spoken and (silent or len(spoken) == MOST_TURNS):
            yield first, merge_speakers(map(tuple, spoken)), None
            spoken = []
        first = first if spoken else number
        last_time = time or last_time
        spoken.append([name, header["text"] or ""])
    if spoken:
        yield first, merge_speakers(map(tuple, spoken)), None


def _to_time(text: str) -> datetime | None:
    """The time, where it has a date; a year of its own where it has none or a short one, so that gaps are still seen."""
    date, _, clock = text.replace("T", " ").replace("日", "日 ").strip().partition(" ")
    numbers = [int(number) for number in _NUMBERS.findall(date)]
    times = [int(number) for number in _NUMBERS.findall(clock)][:3]
    if len(numbers) not in (2, 3) or len(times) < 2:
        return None
    if len(numbers) == 2:
        numbers.insert(0, 2000)
    if re.search("下午|晚上|[Pp][Mm]", clock) and times[0] < 12:
        times[0] += 12
    try:
        return datetime(*numbers, *times)
    except ValueError:
        return None

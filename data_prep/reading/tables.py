"""Tables: CSV and TSV files whose columns hold turns, or one message per row."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from chatbot.errors import FileError
from data_prep.reading.chat_logs import parse_time
from data_prep.reading.labelled.prefixes import unlabelled
from data_prep.reading.messages import MAX_NOTICE_CHARACTERS, Gap, Message, notice, to_dialogues
from data_prep.reading.records import (
    LONG_LINE,
    MANY_CELLS,
    MAX_DIALOGUE_CHARACTERS,
    MAX_TURNS,
    NOT_TEXT,
    NumberedLine,
    Record,
)
from data_prep.reading.thoughts import without_thoughts

QUESTIONS = (
    "question", "questions", "q", "ask", "query", "prompt", "input", "instruction", "user", "human", "post", "title",
    "message", "问题", "问", "提问", "问句", "用户", "上句", "上文", "问话", "对话1", "utterance1", "sentence1",
    "source", "src",
)  # fmt: skip
ANSWERS = (
    "answer", "answers", "a", "response", "reply", "output", "assistant", "bot", "completion", "target", "tgt", "comment",
    "回答", "答", "答案", "回复", "应答", "答句", "机器人", "助手", "下句", "下文", "对话2", "utterance2", "sentence2",
)  # fmt: skip
TEXTS = (
    "strcontent", "content", "text", "message", "msg", "body", "utterance", "sentence", "内容", "消息",
    "消息内容", "文本", "正文", "发言", "对话", "聊天内容",
)  # fmt: skip
SPEAKERS = (
    "issender", "issend", "is_sender", "is_send", "sender", "speaker", "from", "role", "name", "nickname", "author",
    "user", "username", "talker", "sendername", "senderdisplayname",
    "发送者", "发送人", "发言人", "说话人", "昵称", "姓名", "角色", "用户", "发件人", "成员",
)  # fmt: skip
TIMES = (
    "strtime", "time", "timestamp", "date", "datetime", "createtime", "create_time", "created_at", "sent_at", "时间", "日期",
    "发送时间", "消息时间",
)  # fmt: skip
CHATS = (
    "talkerid", "talker_id", "conversation_id", "dialog_id", "dialogue_id", "session_id", "sessionid", "chat_id",
    "strtalker", "会话", "会话id", "对话id", "联系人", "好友",
)  # fmt: skip
KINDS = ("type", "msgtype", "msg_type", "消息类型", "类型")
TEXT_KINDS = ("1", "text", "文本", "文字", "文本消息", "message", "default", "")
MAX_HEADER_CHARACTERS = 1 << 16
"""Part of a line in which the names of columns are looked for."""

Row = tuple[int, list[str] | None, str | None]
"""Number of the first line of a row and its cells, or None and the reason why the row is skipped."""


@dataclass(frozen=True)
class Columns:
    """Indices of the known columns of a table; None for a column that the table does not have.

    Attributes:
        question, answer: Columns of the two turns, in a table of pairs.
        text, speaker: Columns of a message and its speaker, in a table of messages.
        time, chat, kind: Optional columns of a table of messages.
    """

    question: int | None = None
    answer: int | None = None
    text: int | None = None
    speaker: int | None = None
    time: int | None = None
    chat: int | None = None
    kind: int | None = None


def columns_of(header: Sequence[str]) -> Columns | None:
    """Return the indices of the columns with known names, or None if the row is not a known header."""
    names = [name.strip("\ufeff \t\"'").lower().replace(" ", "") for name in header]

    def first(known: Sequence[str], *taken: int | None) -> int | None:
        return next((names.index(name) for name in known if name in names and names.index(name) not in taken), None)

    text = first(TEXTS)
    speaker = first(SPEAKERS, text)
    if text is not None and speaker is not None:
        return Columns(None, None, text, speaker, first(TIMES), first(CHATS), first(KINDS))
    question, answer = first(QUESTIONS), first(ANSWERS)
    if question is not None and answer is not None and question != answer:
        return Columns(question, answer)
    return None


def delimiter_of(lines: Sequence[str]) -> str | None:
    """Return the delimiter of a table with a known header, or of a table of two columns; None for any other file.

    Args:
        lines: Lines at the beginning of a file, without blank ones.
    """
    for delimiter in (",", "\t", ";", "，"):
        header = lines[0][:MAX_HEADER_CHARACTERS]
        if delimiter in header and columns_of(next(csv.reader([header], delimiter=delimiter), [])):
            return delimiter
    if len(lines) > 1 and 10 * sum(line.count(" | ") == 1 for line in lines) >= 9 * len(lines):
        return "|"
    return None


def has_columns(lines: Sequence[str]) -> bool:
    """Whether the lines look like CSV, all with the same number of two or more columns."""
    try:
        rows = list(csv.reader(line[:MAX_HEADER_CHARACTERS] for line in lines[:50]))
    except csv.Error:
        return False
    counts = {len(row) for row in rows[:-1] or rows}  # the last row may be cut
    return len(counts) == 1 and counts.pop() > 1 and len(rows) > 1


def read_table(lines: Iterable[NumberedLine], delimiter: str, path: Path, bot: str | None = None) -> Iterator[Record]:
    """Yield the dialogues of a table with a header, or of a table of two columns.

    Args:
        lines: The lines, blank ones included.
        delimiter: Result of `delimiter_of`.
        path: The file, for error messages.
        bot: See `data_prep.reading.messages.to_dialogues`; a table of pairs has no names.

    Raises:
        FileError: The columns are not known, or `bot` is given for a table of pairs, which has no names.
    """
    rows = _rows(lines, delimiter)
    number, header, _ = next(rows, (1, None, None))
    columns = columns_of(header or [])
    if columns is None and header is not None and len(header) == 2:
        columns = Columns(0, 1)
        yield Record(number, unlabelled([without_thoughts(cell) for cell in header]), None)
    if columns is None:
        shown = ", ".join(name[:20] for name in (header or [])[:8])
        raise FileError(
            f"The columns of {path} ({shown}) are not known. Name them question and answer, or sender and content."
        )
    if columns.text is not None:
        yield from to_dialogues(_messages(rows, columns), bot)
        return
    if bot is not None:
        raise FileError(f"{path} is a table of pairs without names, so --bot cannot choose a speaker.")
    for number, row, reason in rows:
        if row is None:
            yield Record(number, None, reason)
        elif any(cell.strip() for cell in row):
            pair = [without_thoughts(_cell(row, column)) for column in (columns.question, columns.answer)]
            yield Record(number, unlabelled(pair), None)


def _rows(lines: Iterable[NumberedLine], delimiter: str) -> Iterator[Row]:
    """Yield the rows; a line that is not text is a row to skip."""
    if delimiter == "|":
        for number, line in lines:
            if line is None:
                yield number, None, NOT_TEXT
            elif line.count(" | ") >= MAX_TURNS:
                yield number, None, MANY_CELLS
            else:
                yield number, [part.strip() for part in line.rstrip("\r").split(" | ")], None
        return
    csv.field_size_limit(MAX_DIALOGUE_CHARACTERS)
    texts = _RowText(lines, delimiter)
    reader = csv.reader(texts, delimiter=delimiter)
    first = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error:
            yield from ((number, None, NOT_TEXT) for number in texts.unread)
            yield texts.number, None, texts.reason or NOT_TEXT
            first = texts.begin_row()
            continue
        yield from ((number, None, NOT_TEXT) for number in texts.unread)
        yield first, row, None
        first = texts.begin_row()
    yield from ((number, None, NOT_TEXT) for number in texts.unread)


class _RowText:
    """Lines for a `csv.reader`, which stops with `csv.Error` in a row that is too large and then continues.

    A quoted cell may continue on the next line, so a row can be as long as the file.

    Attributes:
        number: Number of the last line.
        unread: Numbers of the lines since the beginning of the row that are not text.
        reason: Why the row is too large; None for any other row.
    """

    def __init__(self, lines: Iterable[NumberedLine], delimiter: str):
        self._lines, self._delimiter = iter(lines), delimiter
        self.number = 0
        self.begin_row()

    def begin_row(self) -> int:
        """Forget the row before; return the number of the next line."""
        self.unread: list[int] = []
        self.reason: str | None = None
        self._cells = self._characters = 0
        return self.number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        while line is None:
            self.unread.append(self.number)
            self.number, line = next(self._lines)
        self._cells += line.count(self._delimiter)
        self._characters += len(line) + 1
        if self._characters > MAX_DIALOGUE_CHARACTERS:
            self.reason = LONG_LINE
        elif self._cells >= MAX_TURNS:
            self.reason = MANY_CELLS
        if self.reason is not None:
            raise csv.Error
        return line.rstrip("\r").replace("\0", "") + "\n"


def _cell(row: Sequence[str], index: int | None) -> str:
    return row[index].strip() if index is not None and index < len(row) else ""


def _messages(rows: Iterable[Row], columns: Columns) -> Iterator[Message | Gap]:
    """Yield the messages of a table; rows of other kinds than text are placeholders."""
    for number, row, reason in rows:
        if row is None:
            yield Gap(Record(number, None, reason))
            continue
        text, speaker = _cell(row, columns.text), _cell(row, columns.speaker)
        kind = _cell(row, columns.kind).lower()
        if kind in ("10000", "10002", "system", "系统消息", "系统"):
            yield notice(number, text.strip()[:MAX_NOTICE_CHARACTERS])
            continue
        if columns.kind is not None and kind not in TEXT_KINDS:
            text = _title(text) if kind == "49" else "[图片]"
        time = _time(_cell(row, columns.time))
        yield Message(number, speaker or "0", text, time, _cell(row, columns.chat))


def _title(text: str) -> str:
    """Return the title of a message with a quotation, which WeChat stores as XML of kind 49; a placeholder for others."""
    if "<type>57</type>" in text and "<title>" in text:
        return text.split("<title>", 1)[1].split("</title>", 1)[0]
    return "[链接]" if text.lstrip().startswith("<") or not text else text


def _time(text: str) -> datetime | None:
    """Return the time of a cell: a date with a clock, or seconds or milliseconds since 1970."""
    if text.isdigit() and len(text) in (10, 13):
        return datetime.fromtimestamp(int(text[:10]), UTC).replace(tzinfo=None)
    return parse_time(text)

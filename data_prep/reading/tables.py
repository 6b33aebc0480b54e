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
from data_prep.reading.messages import Gap, Message, to_dialogues
from data_prep.reading.records import NOT_TEXT, NumberedLine, Record
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
MAX_FIELD_CHARACTERS = 16 << 20


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
        if delimiter in lines[0] and columns_of(next(csv.reader(lines[:1], delimiter=delimiter), [])):
            return delimiter
    if len(lines) > 1 and 10 * sum(line.count(" | ") == 1 for line in lines) >= 9 * len(lines):
        return "|"
    return None


def has_columns(lines: Sequence[str]) -> bool:
    """Whether the lines look like CSV, all with the same number of two or more columns."""
    try:
        rows = list(csv.reader(lines[:50]))
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
    number, header = next(rows, (1, None))
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
    for number, row in rows:
        if row is None:
            yield Record(number, None, NOT_TEXT)
        elif any(cell.strip() for cell in row):
            pair = [without_thoughts(_cell(row, column)) for column in (columns.question, columns.answer)]
            yield Record(number, unlabelled(pair), None)


def _rows(lines: Iterable[NumberedLine], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield (line number, row) for each row; the row is None for a line that is not text."""
    if delimiter == "|":
        for number, line in lines:
            yield number, None if line is None else [part.strip() for part in line.rstrip("\r").split(" | ")]
        return
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    position = [0]
    unread: list[int] = []

    def text() -> Iterator[str]:
        for number, line in lines:
            position[0] = number
            if line is None:
                unread.append(number)
            else:
                yield line.rstrip("\r").replace("\0", "") + "\n"

    reader = csv.reader(text(), delimiter=delimiter)
    first = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error:
            yield position[0], None
            continue
        yield from ((number, None) for number in unread)
        unread.clear()
        yield first, row
        first = position[0] + 1
    yield from ((number, None) for number in unread)


def _cell(row: Sequence[str], index: int | None) -> str:
    return row[index].strip() if index is not None and index < len(row) else ""


def _messages(rows: Iterable[tuple[int, list[str] | None]], columns: Columns) -> Iterator[Message | Gap]:
    """Yield the messages of a table; rows of other kinds than text are placeholders."""
    for number, row in rows:
        if row is None:
            yield Gap(Record(number, None, NOT_TEXT))
            continue
        text, speaker = _cell(row, columns.text), _cell(row, columns.speaker)
        kind = _cell(row, columns.kind).lower()
        if kind in ("10000", "10002", "system", "系统消息", "系统"):
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

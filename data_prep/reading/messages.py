"""Messages of named speakers, as chat programs export them, and the dialogues that they form."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import NamedTuple

from chatbot.errors import FileError
from data_prep.reading import records
from data_prep.reading.not_speech import is_system, speech
from data_prep.reading.records import BOT_OPENS, LONG_LINE, NOT_SPEECH, Record, merge_speakers
from data_prep.reading.thoughts import without_thoughts

SESSION_GAP = timedelta(hours=3)
"""Maximum silence within a dialogue; after a longer one, a new dialogue begins."""
MAX_CHATS = 1000
"""Maximum number of conversations of one file that are open at the same time; the conversation with the oldest message is
closed first."""

MAX_NOTICE_CHARACTERS = 200
"""A message without speech is cut to this number of characters for the report."""

BOT_IS_SILENT = "bot_does_not_reply"
_NUMBER = re.compile(r"(?:(?<!\s)\s++|)(?:\(\d+\)|（\d+）|<[^<>]+>)$")
_SYSTEM_NAMES = frozenset({"system", "系统消息", "系统", "系统通知", "群通知", "systemmessage"})


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        number: Line or array element where the message begins, from 1.
        speaker: Name or id of the speaker; empty for the program itself.
        text: Text of the message; its lines are divided by line ends.
        time: Time, or None if unknown.
        chat: Name or id of the conversation, where a file holds several.
    """

    number: int
    speaker: str
    text: str
    time: datetime | None = None
    chat: str = ""


class NumberedText(NamedTuple):
    """Further line of a message.

    Attributes:
        number: Its number in the file, from 1.
        text: The line.
    """

    number: int
    text: str


class OpenMessage:
    """Message whose lines are being read. If its text gets too long, it is replaced by blanks that are too long as well.

    Args:
        number: Line where the message begins, from 1.
        speaker: Name of the speaker.
        text: First line of the message, if it has been read.
        time: Time, or None if unknown.
    """

    def __init__(self, number: int, speaker: str, text: str = "", time: datetime | None = None):
        self._number, self._speaker, self._time = number, speaker, time
        self._lines: list[str] = []
        self._characters = 0
        if text:
            self.add(text)

    def add(self, line: str) -> None:
        """Add a line."""
        line = line.rstrip(" \t\r\0")
        self._characters += len(line) + 1
        if self._characters > records.MAX_DIALOGUE_CHARACTERS:
            self._lines = [" " * (records.MAX_DIALOGUE_CHARACTERS + 1)]
        else:
            self._lines.append(line)

    def close(self) -> Message:
        """Return the message."""
        return Message(self._number, self._speaker, "\n".join(self._lines), self._time)


@dataclass(frozen=True)
class Gap:
    """Mark that ends a dialogue, such as the heading of the next contact.

    Attributes:
        record: A record to report at this point, such as a line that is not text.
    """

    record: Record | None = None


def notice(number: int, text: str) -> Message:
    """Return a line that the program wrote, which is left out of the dialogues and listed in the report."""
    return Message(number, "", text)


Part = OpenMessage | Message | NumberedText | Gap | None
"""What a line of a log is: the beginning of a message, a message of one line such as a notice, a further line of the
message before, a gap, or the end of the message."""


def joined(parts: Iterable[Part]) -> Iterator[Message | Gap]:
    """Yield the messages of a log from its parts.

    The beginning of a message ends the one before; a further line without a message is a notice; a gap ends no message.
    """
    message: OpenMessage | None = None
    for part in parts:
        if isinstance(part, Gap):
            yield part
        elif isinstance(part, NumberedText):
            if message is not None:
                message.add(part.text)
            else:
                yield notice(*part)
        else:
            if message is not None:
                yield message.close()
            message = part if isinstance(part, OpenMessage) else None
            if isinstance(part, Message):
                yield part
    if message is not None:
        yield message.close()


class _Dialogue:
    """The dialogue of one conversation that is being read."""

    def __init__(self, first: int):
        self.first = first
        self.messages: list[tuple[str, str]] = []
        self.numbers: list[int] = []
        self.time: datetime | None = None
        self.characters = 0
        self.unspoken_by: str | None = None  # sender of the last picture or similar message, if no text has followed

    def is_over(self, message: Message) -> bool:
        """Whether a message begins a new dialogue: after a silence, because the dialogue has reached its maximum size, or
        because the message answers a picture.

        A model cannot learn from a picture or from the reply to it: without the picture, the reply would seem to
        continue the same speaker's own last message.
        """
        if self.time and message.time and message.time - self.time > SESSION_GAP:
            return True
        is_full = len(self.messages) >= records.MAX_TURNS or self.characters > records.MAX_DIALOGUE_CHARACTERS
        last = self.messages[-1][0] if self.messages else None
        answers_picture = self.unspoken_by not in (None, message.speaker) and last == message.speaker
        return is_full or answers_picture

    def add(self, message: Message, text: str) -> None:
        self.messages.append((message.speaker, text.replace("\n", " ")))
        self.numbers.append(message.number)
        self.characters += len(text) + 1
        self.time = message.time or self.time
        self.unspoken_by = None

    def records(self, bot: str | None) -> Iterator[Record]:
        """Yield the dialogue, after the messages with which the imitated speaker begins it, which answer nothing."""
        if bot is None:
            yield Record(self.first, merge_speakers(self.messages), None)
            return
        roles = [("bot" if is_named(speaker, bot) else "user", text) for speaker, text in self.messages]
        opening = [text for _, text in takewhile(lambda message: message[0] == "bot", roles)]
        turns = merge_speakers(roles[len(opening) :])
        if len(turns) < 2:
            yield Record(self.first, merge_speakers(roles), BOT_IS_SILENT)
            return
        yield from (Record(number, [text], BOT_OPENS) for number, text in zip(self.numbers, opening, strict=False))
        yield Record(self.first, turns, None)


def to_dialogues(messages: Iterable[Message | Gap], bot: str | None = None) -> Iterator[Record]:
    """Yield the dialogues of messages: each conversation is cut at silences, and only speech is kept.

    A message without speech, such as a notice of the program or a picture, is yielded as a record (`NOT_SPEECH`), and so is
    a message with which the imitated speaker begins a dialogue (`BOT_OPENS`).

    A message longer than `MAX_DIALOGUE_CHARACTERS` is counted as a line that is too long.

    Args:
        messages: Messages in order, and gaps, at which dialogues end.
        bot: Name of the speaker that the bot is to imitate. Dialogues begin with a turn of another speaker, and all
            other speakers are treated as one. Dialogues in which the named speaker does not reply are yielded with the
            reason `BOT_IS_SILENT`. None keeps the speakers as they are.

    Raises:
        FileError: The named speaker says nothing at all.
    """
    open_chats: dict[str, _Dialogue] = {}
    speakers: Counter[str] = Counter()
    for message in messages:
        if isinstance(message, Gap):
            for ended in open_chats.values():
                yield from ended.records(bot)
            open_chats.clear()
            if message.record is not None:
                yield message.record
            continue
        dialogue = open_chats.get(message.chat)
        if len(message.text) > records.MAX_DIALOGUE_CHARACTERS:
            if dialogue is not None:
                yield from dialogue.records(bot)
            open_chats.pop(message.chat, None)
            yield Record(message.number, None, LONG_LINE)
            continue
        text = "" if is_system_name(message.speaker) else _speech_of(message, speakers)
        if not text and message.text.strip():
            yield Record(message.number, [message.text.strip()[:MAX_NOTICE_CHARACTERS]], NOT_SPEECH)
        if is_system_name(message.speaker):
            continue
        if not text:
            if dialogue is not None and message.text.strip() and not is_system(message.text):
                dialogue.unspoken_by = message.speaker
            continue
        if len(speakers) < MAX_CHATS or message.speaker in speakers:
            speakers[message.speaker] += 1
        if dialogue is not None and dialogue.is_over(message):
            yield from dialogue.records(bot)
            dialogue = None
        open_chats.pop(message.chat, None)
        dialogue = dialogue or _Dialogue(message.number)
        dialogue.add(message, text)
        open_chats[message.chat] = dialogue  # the last one is the newest
        if len(open_chats) > MAX_CHATS:
            yield from open_chats.pop(next(iter(open_chats))).records(bot)
    for ended in open_chats.values():
        yield from ended.records(bot)
    if bot is not None and not any(is_named(speaker, bot) for speaker in speakers):
        shown = ", ".join(f"{name} ({count})" for name, count in speakers.most_common(6))
        raise FileError(f"{bot} says nothing in a file. Give the name of one of its speakers: {shown}.")


_ADDRESS = re.compile(r"(?P<name>[^\s:：,，]{1,30})[:：]\s+(?=\S)")


def _speech_of(message: Message, speakers: Mapping[str, int]) -> str:
    """Return the speech of a message: without thoughts and placeholders, and without the name that it addresses.

    Clients of IRC begin a message to somebody with the name and a colon.
    """
    text = speech(without_thoughts(message.text))
    address = _ADDRESS.match(text)
    if address is not None and address["name"] != message.speaker and address["name"] in speakers:
        return text[address.end() :]
    return text


def is_named(speaker: str, name: str) -> bool:
    """Whether a speaker has a name, with or without the number that QQ puts behind it."""
    return name in (speaker, _NUMBER.sub("", speaker))


def is_system_name(name: str) -> bool:
    """Whether a name stands for the chat program itself."""
    return not name or name.startswith(("-!-", "!-")) or name.split("(")[0].strip().lower() in _SYSTEM_NAMES

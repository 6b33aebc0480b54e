"""Likes and dislikes: a JSONL file with one line per rated reply.

`xianliao-prepare` reads the file; it leaves out disliked replies. A second rating of a reply replaces the first one, whose
line then has only spaces.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Literal, NamedTuple

from chatbot.errors import XianliaoError
from chatbot.storage import replacing
from chatbot.text.dialogue import valid_text
from ui.page.chats import Chat, ChatError, turns_of
from ui.page.signature import is_signed, turns_of_this_process
from ui.server.logs import FAILURES

LIKE_REASONS = ("on_topic", "funny", "kind")
DISLIKE_REASONS = ("off_topic", "repeats", "odd", "rude")
REASONS = (*LIKE_REASONS, *DISLIKE_REASONS)
MAX_COMMENT_CHARACTERS = 1_000
MAX_TURNS = 50
MAX_LINE_BYTES = 64 * 1024
MAX_FILE_BYTES, MAX_BLANK_BYTES = 40 * 10**6, 10**7
"""Size limit of the lines of the file, and of replaced lines, which are blank: beyond it the file is copied without them."""
COPY_BYTES = 2**20
"""Number of bytes of new or blank lines for which a thread reads or copies the file."""

Rating = Literal["like", "dislike"]


def reasons_of(rating: Rating) -> tuple[str, ...]:
    """Return the reasons that fit a rating."""
    return LIKE_REASONS if rating == "like" else DISLIKE_REASONS


def rated_turns(chat: Chat, index: int, text: str | None = None) -> list[str]:
    """Return the turns to record with a rating: those up to the rated reply, as far back as this process made every reply.

    Args:
        chat: The conversation.
        index: Index of the reply among the messages.
        text: Text that the reply must still have.

    Raises:
        ChatError: The message is not a complete reply of this server, or the conversation was changed since.
    """
    message = chat["messages"][index] if 0 <= index < len(chat["messages"]) else None
    if message is None or "seed" not in message or text not in (None, message["text"]):
        raise ChatError("not_rateable")
    turns = turns_of({**chat, "messages": chat["messages"][: index + 1]})
    if not is_signed(turns, message):
        raise ChatError("not_signed")
    return turns_of_this_process(chat, index, MAX_TURNS)


class FeedbackError(XianliaoError):
    """Feedback that cannot be recorded."""


class _Line(NamedTuple):
    offset: int
    length: int
    sender: str


class Feedback:
    """The file `feedback.jsonl` of a folder. Only its owner may read it.

    A rating is appended. If it replaces an earlier one, the line of that one is then overwritten with spaces, which
    readers skip. The offsets of the lines are in memory; a thread reads them from a file of an earlier process, and
    copies the file without its blank lines when they have `MAX_BLANK_BYTES`. So no rating waits for the whole file. Give
    every replica its own folder, because two processes that write at once can lose a line.

    Args:
        folder: Folder of the file; it is created with the first rating.
    """

    def __init__(self, folder: Path):
        self.path = folder / "feedback.jsonl"
        self._lock = threading.Lock()
        self._lines: dict[bytes, _Line] = {}  # by the hash of the messages
        self._identity: tuple[int, int] | None = None  # of the file that the lines are in
        self._size = self._blank = 0  # bytes of the file, and of its blank lines
        self._of_sender: defaultdict[str, int] = defaultdict(int)
        self._blanked: list[_Line] = []  # since the thread began
        self._thread: threading.Thread | None = None

    def write(
        self,
        turns: Sequence[str],
        rating: Rating,
        reasons: Sequence[str] = (),
        comment: str = "",
        generation: Mapping[str, object] | None = None,
        sender: str = "",
    ) -> None:
        """Record a rating: the last turns as messages, ending with the reply that is rated.

        Args:
            turns: History and reply, the user's turn first.
            rating: Rating of the reply.
            reasons: Some of `REASONS`; others are dropped.
            comment: Comment of the user.
            generation: Model, seed and settings of the reply.
            sender: Address or user who rates; one sender may fill half of the room that the others leave.

        Raises:
            FeedbackError: The rating is invalid or too large, the file or the sender's share is full, or it cannot be
                written.
        """
        if rating not in ("like", "dislike"):
            raise FeedbackError("A rating is like or dislike.")
        known = [reason for reason in REASONS if reason in reasons]
        details = {"rating": rating, "reasons": known, "comment": valid_text(comment[:MAX_COMMENT_CHARACTERS])}
        line = _line_of(turns, {**details, **(generation or {})})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._lock, open(self.path, "r+b", buffering=0, opener=_private) as file:
                self._follow(file)
                self._put(file, line, sender)
        except OSError as error:
            raise FeedbackError(f"The feedback could not be written to {self.path}: {error.strerror}.") from None

    def settle(self) -> None:
        """Wait until no thread reads or copies the file."""
        while (thread := self._thread) is not None:
            thread.join()

    def _put(self, file: FileIO, content: bytes, sender: str) -> None:
        """Append a line, and blank the one that it replaces."""
        key = _key_of(content)
        old = self._lines.get(key)
        freed = 0 if old is None else old.length
        rated = self._size - self._blank
        if rated - freed + len(content) > MAX_FILE_BYTES or self._blank > 2 * MAX_BLANK_BYTES:
            raise FeedbackError(f"The feedback file is full ({MAX_FILE_BYTES // 10**6} MB). Move {self.path} away.")
        bytes_of_sender = self._of_sender[sender]
        share = (MAX_FILE_BYTES - rated + bytes_of_sender) // 2
        freed = 0 if old is None or old.sender != sender else freed
        if sender and bytes_of_sender - freed + len(content) > share:
            raise FeedbackError(f"One client has filled its share of the feedback file. Move {self.path} away.")
        try:
            file.seek(self._size)
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(self._size)
            raise
        self._add(file, _Line(self._size, len(content), sender), key)
        self._size += len(content)
        if self._blank > MAX_BLANK_BYTES:
            self._begin(self._compact)

    def _add(self, file: FileIO, line: _Line, key: bytes) -> None:
        old = self._lines.get(key)
        self._lines[key] = line
        self._of_sender[line.sender] += line.length
        if old is not None:
            self._of_sender[old.sender] -= old.length
            self._make_blank(file, old)

    def _make_blank(self, file: FileIO, line: _Line) -> None:
        file.seek(line.offset)
        file.write(b" " * (line.length - 1))
        self._blank += line.length
        if self._thread is not None:
            self._blanked.append(line)

    def _follow(self, file: FileIO) -> None:
        """Note what another process has done to the file: it has added lines at the end, or replaced the file."""
        stat = os.fstat(file.fileno())
        if (stat.st_dev, stat.st_ino) != self._identity or stat.st_size < self._size:
            self._lines, self._identity = {}, (stat.st_dev, stat.st_ino)
            self._size = self._blank = 0
            self._of_sender.clear()
        if stat.st_size == self._size:
            return
        start, self._size = self._size, _cut(file, self._size, stat.st_size)
        if self._size - start > COPY_BYTES:
            self._begin(self._load)
        else:
            for offset, raw in _lines_of(self.path, start, self._size):
                self._note(file, offset, raw)

    def _note(self, file: FileIO, offset: int, raw: bytes) -> None:
        """Note a line that was in the file; if it was replaced while the file was read, blank it."""
        key, line = _key_of(raw), _Line(offset, len(raw), "")
        if not raw.strip():
            self._blank += len(raw)
        elif key in self._lines and self._lines[key].offset > offset:
            self._make_blank(file, line)
        elif key:
            self._add(file, line, key)

    def _begin(self, work: Callable[[int], None]) -> None:
        """Start a thread that works on the file up to its present end, unless one is working."""
        if self._thread is None:
            self._blanked = []
            self._thread = threading.Thread(target=self._run, args=(work, self._size), daemon=True)
            self._thread.start()

    def _run(self, work: Callable[[int], None], end: int) -> None:
        try:
            work(end)
        except OSError as error:
            FAILURES.log("", f"{self.path} could not be read or copied: {error.strerror}", "warning")
        finally:
            with self._lock:
                self._thread, self._blanked = None, []

    def _load(self, end: int) -> None:
        """Note the lines of a file that an earlier process has written, and copy it if many are blank."""
        identity = self._identity
        for offset, raw in _lines_of(self.path, 0, end):
            with self._lock, open(self.path, "r+b", buffering=0) as file:
                if self._identity != identity:
                    return
                self._note(file, offset, raw)
        if self._blank > min(COPY_BYTES, MAX_BLANK_BYTES):
            with self._lock:
                self._blanked, end = [], self._size
            self._compact(end)

    def _compact(self, end: int) -> None:
        """Replace the file by a copy without its blank lines; ratings may arrive meanwhile."""
        offsets: dict[int, int] = {}
        with ExitStack() as held, replacing(self.path, durable=False, mode=0o600) as temporary:
            identity = self._identity
            with open(temporary, "r+b") as target:
                for offset, raw in _lines_of(self.path, 0, end):
                    if raw.strip():
                        offsets[offset] = target.tell()
                        target.write(raw)
                target.flush()
                os.fsync(target.fileno())
                held.enter_context(self._lock)  # until the copy has replaced the file
                if self._identity != identity:
                    raise OSError(errno.EBUSY, "another process has replaced it")
                for offset, raw in _lines_of(self.path, end, self._size):
                    offsets[offset] = target.tell()
                    target.write(raw)
                self._size, self._blank = target.tell(), 0
                for line in self._blanked:
                    if line.offset in offsets:
                        target.seek(offsets[line.offset])
                        target.write(b" " * (line.length - 1))
                        self._blank += line.length
                stat = os.fstat(target.fileno())
            self._identity = (
                stat.st_dev,
                stat.st_ino,
            )  # if the copy cannot replace the file, it is another one, and read anew
            self._lines = {key: line._replace(offset=offsets[line.offset]) for key, line in self._lines.items()}


def _line_of(turns: Sequence[str], details: Mapping[str, object]) -> bytes:
    """Return the JSON line of a rating, with as many of the last turns as fit into it.

    Raises:
        FeedbackError: The last message and its reply alone do not fit.
    """
    turns = turns[-MAX_TURNS:]
    while True:
        messages = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
        line = json.dumps({"messages": messages, **details}, ensure_ascii=False).encode() + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            return line
        if len(turns) <= 2:
            raise FeedbackError(f"The rated reply and its message have more than {MAX_LINE_BYTES // 1024} KiB.")
        turns = turns[2:]


def _key_of(line: bytes) -> bytes:
    """Return the hash of the messages of a line, which are in front of its rating; empty for a line of another form."""
    messages, mark, _ = line.partition(b'], "rating": "')  # a text cannot have these bytes: its quotes are escaped
    return sha256(messages).digest() if mark else b""


def _lines_of(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) of the lines between two offsets."""
    with open(path, "rb") as file:
        file.seek(start)
        while start < end and (raw := file.readline(end - start)):
            yield start, raw
            start += len(raw)


def _cut(file: FileIO, start: int, end: int) -> int:
    """Remove a last line without its end, which was written when its process died; return the new end."""
    begin = max(start, end - 2 * MAX_LINE_BYTES)
    file.seek(begin)
    rest = file.read(end - begin)
    if rest.endswith(b"\n"):
        return end
    end = begin + rest.rfind(b"\n") + 1
    file.truncate(end)
    return end


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)

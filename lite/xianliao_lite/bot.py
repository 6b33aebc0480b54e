"""The bot, which calls the compiled library through ctypes."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = (
    *("greedy", "candidates", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("no_repeat_ngram", "repeat_cost", "keep_eos", "floor_start_tokens", "floor_delta_tokens", "max_reply_tokens"),
    "min_reply_tokens",
)
"""Decoding settings in the order of the library (chatbot/native/runtime/runtime.h)."""

OFF = {"repeat_cost": math.inf, "floor_start_tokens": -1.0, "max_reply_tokens": -1.0}
"""Number that the library gets for None, for each setting that None switches off."""

REASONS = ("stopped", "eos", "floor", "limit", "safety")
MAX_SEED = 2**31 - 1
KEPT_CHATS = 4
"""Number of conversations whose state is kept, so that a further turn costs only its own tokens."""

_SURROGATE = re.compile("[\ud800-\udfff]")
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


class LiteError(Exception):
    """A file, history or setting that cannot be used; the message says why."""


@dataclass(frozen=True)
class Reply:
    """A finished or unfinished reply.

    Attributes:
        text: Text without unfinished characters.
        token_ids: Tokens before the end of turn.
        stop_reason: eos, floor, limit or safety (a fixed text for people in crisis); stopped while it is unfinished.
        log_prob: Sum of log p in nats.
        seed: Seed that gives the same reply again for the same history and settings.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: str
    log_prob: float
    seed: int


def _library(path: str | Path | None) -> ctypes.CDLL:
    """Return the library with its types.

    Raises:
        LiteError: The library is missing.
    """
    path = Path(path or os.environ.get("XIANLIAO_LIBRARY") or Path(__file__).with_name(f"xianliao{SUFFIX}"))
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LiteError(f"The library {path} cannot be loaded ({error}). Install a wheel for this system.") from None
    types: dict[str, tuple[Any, list[Any]]] = {
        "xl_open": (c_void_p, [c_char_p, c_char_p, c_int64]),
        "xl_close": (None, [c_void_p]),
        "xl_settings": (POINTER(c_double), [c_void_p]),
        "xl_kernel": (c_char_p, [c_void_p]),
        "xl_chat": (c_void_p, [c_void_p]),
        "xl_end": (None, [c_void_p]),
        "xl_begin": (c_int, [c_void_p, c_char_p, POINTER(c_int32), c_int32, c_int64, POINTER(c_double), c_int]),
        "xl_step": (c_int, [c_void_p]),
        "xl_text": (c_void_p, [c_void_p]),
        "xl_text_bytes": (c_int64, [c_void_p]),
        "xl_ids": (POINTER(c_int32), [c_void_p, POINTER(c_int64)]),
        "xl_log_prob": (c_double, [c_void_p]),
        "xl_reason": (c_int, [c_void_p]),
        "xl_fault": (c_char_p, [c_void_p]),
        "xl_encode": (c_int64, [c_void_p, c_char_p, c_int64, POINTER(c_int32), c_int64]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _random_seed() -> int:
    """Return a seed from the system's random numbers; the module secrets would load OpenSSL (4 MB)."""
    return int.from_bytes(os.urandom(4), "little") >> 1


def _utf8(text: str) -> bytes:
    """Return a text in UTF-8, with U+FFFD for lone surrogates."""
    return _SURROGATE.sub("\ufffd", text).encode()


def _weights(path: str | Path | None) -> Path:
    if path is None:
        path = os.environ.get("XIANLIAO_BOT") or next(iter(sorted(Path(__file__).parent.glob("*.xianliao"))), None)
    if path is None:
        raise LiteError("Give a weights file: xianliao-export CHECKPOINT --to lite --output bot.xianliao writes one.")
    return Path(path)


class Bot:
    """A weights file that replies to histories. Any number of threads may use it.

    Attributes:
        name: Name of the file.
        defaults: Decoding settings of the file.
        kernel: Build of the arithmetic that was chosen for this processor.

    >>> Bot("bot.xianliao").reply(["你好"], seed=0).text  # doctest: +SKIP
    """

    def __init__(self, path: str | Path | None = None, safety: bool = True, library: str | Path | None = None):
        """Open a weights file.

        Args:
            path: The file; None takes XIANLIAO_BOT or the file inside the package.
            safety: Whether fixed texts answer people in crisis.
            library: The compiled library; None takes the library inside the package.

        Raises:
            LiteError: A file is missing or damaged.
        """
        path, self.safety = _weights(path), safety
        self._library, fault = _library(library), ctypes.create_string_buffer(256)
        self._bot = self._library.xl_open(os.fsencode(path) if os.name != "nt" else str(path).encode(), fault, 256)
        if not self._bot:
            raise LiteError(f"{path}: {fault.value.decode()}")
        self.name, self.kernel = path.stem, self._library.xl_kernel(self._bot).decode()
        self.defaults = dict(zip(SETTINGS, self._library.xl_settings(self._bot)[: len(SETTINGS)], strict=True))
        self._chats: list[Any] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Free the memory; the bot cannot be used afterwards."""
        while self._chats:
            self._library.xl_end(self._chats.pop())
        if self._bot:
            self._library.xl_close(self._bot)
            self._bot = None

    def reply(self, turns: Sequence[str], seed: int | None = None, **settings: Any) -> Reply:
        """Return the reply to a history.

        Args:
            turns: The history, oldest turn first; the last turn is the message.
            seed: Seed of the random numbers; None draws one.
            settings: Changes of the file's decoding settings; None switches one off.

        Raises:
            LiteError: The history is empty, its last turn empty or too long, or a setting cannot be used.
        """
        *_, reply = self.stream(turns, seed, **settings)
        return reply

    def stream(self, turns: Sequence[str], seed: int | None = None, **settings: Any) -> Iterator[Reply]:
        """Return an iterator of the reply so far after each token; arguments and errors as for `reply`.

        The history is read, and checked for people in crisis, before this returns. The iterator decodes.
        """
        replies = self._replies(turns, seed, settings)
        next(replies)
        return replies

    def _replies(self, turns: Sequence[str], seed: int | None, settings: dict[str, Any]) -> Iterator[Any]:
        """Yield None after the history is read, then the reply so far after each token."""
        seed = _random_seed() if seed is None else seed
        numbers = self._numbers(settings)
        if isinstance(turns, str) or not all(isinstance(turn, str) for turn in turns):
            raise LiteError("The history must be a list of strings, oldest turn first.")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
            raise LiteError(f"The seed must be a whole number from 0 to {MAX_SEED}, got {seed!r}.")
        encoded = list(map(_utf8, turns))
        sizes = (c_int32 * max(1, len(encoded)))(*map(len, encoded))
        chat = self._borrow()
        try:
            text = b"".join(encoded)
            if self._library.xl_begin(chat, text, sizes, len(encoded), seed, numbers, self.safety):
                raise LiteError(self._library.xl_fault(chat).decode())
            yield None
            running = 1
            while running:
                running = self._library.xl_step(chat)
                if running < 0:
                    raise LiteError(self._library.xl_fault(chat).decode())
                yield self._shown(chat, seed, running)
        finally:
            self._give_back(chat)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text.

        Raises:
            LiteError: There is not enough memory.
        """
        encoded = _utf8(text)
        ids = (c_int32 * (len(encoded) + 1))()  # a token has at least one byte
        count = self._library.xl_encode(self._bot, encoded, len(encoded), ids, len(ids))
        if count < 0:
            raise LiteError("Memory is short.")
        return ids[:count]

    def _numbers(self, settings: dict[str, Any]) -> Any:
        """Return the settings as the library reads them.

        Raises:
            LiteError: A setting is unknown or not a number.
        """
        settings = dict(settings)
        if "method" in settings:
            method = settings.pop("method")
            if method not in ("sample", "greedy"):
                raise LiteError(f"method must be 'sample' or 'greedy', got {method!r}.")
            settings["greedy"] = method == "greedy"
            if settings["greedy"]:
                settings.setdefault("candidates", 1)  # as in Python: other methods than sampling have one
        values = dict(self.defaults)
        for name, value in settings.items():
            if name not in values:
                raise LiteError(f"Unknown setting {name}. Settings: {', '.join(SETTINGS)}.")
            if value is None and name in OFF:
                value = OFF[name]
            if not isinstance(value, (int, float)) or math.isnan(value):
                raise LiteError(f"{name} must be a number, got {value!r}.")
            values[name] = float(value)
        return (c_double * len(SETTINGS))(*(values[name] for name in SETTINGS))

    def _shown(self, chat: Any, seed: int, running: int) -> Reply:
        library, count = self._library, c_int64()
        text = library.xl_text(chat)
        shown = ctypes.string_at(text, library.xl_text_bytes(chat)).decode()
        ids = library.xl_ids(chat, byref(count))
        reason = REASONS[0 if running else library.xl_reason(chat)]
        return Reply(shown, tuple(ids[: count.value]) if count.value else (), reason, library.xl_log_prob(chat), seed)

    def _borrow(self) -> Any:
        """Return the latest conversation that no other thread uses; its state most likely covers the history."""
        with self._lock:
            if not self._bot:
                raise LiteError("The bot is closed.")
            if self._chats:
                return self._chats.pop()
        chat = self._library.xl_chat(self._bot)
        if not chat:
            raise LiteError("Memory is short.")
        return chat

    def _give_back(self, chat: Any) -> None:
        with self._lock:
            if self._bot and len(self._chats) < KEPT_CHATS:
                self._chats.append(chat)
                return
        self._library.xl_end(chat)

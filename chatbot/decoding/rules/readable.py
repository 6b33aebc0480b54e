"""Readable text: replies contain only assigned Unicode characters, and no control or private-use characters.

Tokens can be parts of characters, for example single bytes for characters outside the vocabulary. After the first bytes
of a character, only EOS and tokens that can complete a readable character are allowed.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from chatbot.text.characters import is_readable

CACHED_BEGINNINGS = 256
"""Number of unfinished characters whose continuations are cached."""

LAST_READABLE = 0x3FFFF
"""From this code point on, Unicode has only tags, selectors and private characters, so a search for readable ones stops
here."""

_SIZES = ((0xC2, 0xDF, 2), (0xE0, 0xEF, 3), (0xF0, 0xF4, 4))
"""First bytes of UTF-8 characters, and the number of bytes of the character."""


class ReadableText:
    """Logits rule against tokens that would make the text unreadable.

    Args:
        pieces: Bytes of each token, `[V]`; tokens without bytes (special ones) are never forbidden.
        is_readable: Whether a character may be part of a reply.
    """

    def __init__(self, pieces: Sequence[bytes], is_readable: Callable[[str], bool]):
        self.pieces, self.is_readable = pieces, is_readable
        self._beginning_is_readable = lru_cache(None)(self._is_readable_beginning)
        self._forbidden = torch.tensor(
            [i for i, piece in enumerate(pieces) if not self._is_text(piece)], dtype=torch.int64
        )
        self._specials = [i for i, piece in enumerate(pieces) if not piece]
        self._continuing = [i for i, piece in enumerate(pieces) if piece and 0x80 <= piece[0] <= 0xBF]
        self._allowed_after = lru_cache(CACHED_BEGINNINGS)(self._find_allowed)

    def apply(self, logits: torch.Tensor, replies: Sequence[Sequence[int]]) -> None:
        """Set logits `[B, V]` of tokens that would make one of the B replies unreadable to -inf, in place."""
        unfinished = [self._unfinished(reply) for reply in replies]
        before = {row: logits[row].clone() for row, beginning in enumerate(unfinished) if beginning}
        logits.index_fill_(1, self._forbidden.to(logits.device), -torch.inf)
        for row, values in before.items():
            allowed = self._allowed_after(unfinished[row]).to(logits.device)
            logits[row].fill_(-torch.inf)
            logits[row, allowed] = values[allowed]

    def _unfinished(self, reply: Sequence[int]) -> bytes:
        """Return the first bytes of a character that the reply has not finished."""
        end = b""
        for token in reversed(reply):
            end = self.pieces[token] + end
            if len(end) > 3:
                break
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        decoder.decode(end)
        return decoder.getstate()[0]

    def _find_allowed(self, beginning: bytes) -> torch.Tensor:
        tokens = [i for i in self._continuing if self._is_text(beginning + self.pieces[i])]
        with torch.inference_mode(False):  # the cache must work with gradients, too
            return torch.tensor([*self._specials, *tokens], dtype=torch.int64)

    def _is_text(self, piece: bytes) -> bool:
        """Whether bytes encode readable characters, the last of which may be incomplete."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            complete = decoder.decode(piece)
        except UnicodeDecodeError:
            return False
        rest = decoder.getstate()[0]
        return all(map(self.is_readable, complete)) and (not rest or self._beginning_is_readable(rest))

    def _is_readable_beginning(self, beginning: bytes) -> bool:
        """Whether some readable character begins with these bytes."""
        size = next(size for first, last, size in _SIZES if first <= beginning[0] <= last)
        first, last = (_code(beginning + padding * (size - len(beginning))) for padding in (b"\x80", b"\xbf"))
        smallest = 0x80 if size == 2 else 0x800 if size == 3 else 0x10000
        return any(self.is_readable(chr(code)) for code in range(max(first, smallest), min(last, LAST_READABLE) + 1))


@lru_cache(8)
def readable_text(pieces: tuple[bytes, ...], keeps_lines: bool) -> ReadableText:
    """Return the rule for a vocabulary.

    Args:
        pieces: Bytes of each token.
        keeps_lines: Whether line breaks and tabs are readable, as in replies of chat models.
    """
    if keeps_lines:
        return ReadableText(pieces, lambda character: character in "\n\t" or is_readable(character))
    return ReadableText(pieces, is_readable)


def _code(character: bytes) -> int:
    """Return the code point that a UTF-8 sequence encodes, even if it is not a valid character."""
    code = character[0] & (0xFF >> (len(character) + 1))
    for byte in character[1:]:
        code = code << 6 | byte & 0x3F
    return code

"""Banned words: a token that would complete a banned word is forbidden, unless the text before makes the word harmless."""

from __future__ import annotations

import codecs
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence

import torch

from chatbot.safety.words import split_words

UNFINISHED_BYTES = 8
"""Number of further bytes to keep at the end of a reply, because the bytes of an unfinished character are dropped."""

CACHED_IDS = 4_000_000
"""Number of ids that the cache of `Completions` may hold, in 32 MB; it is emptied when it is full."""


class BannedWords:
    """Logits rule against the tokens that would complete a banned word.

    The rule works on the UTF-8 bytes of the text, so a word is recognised even if its characters are spelled by several
    tokens; in UTF-8, no character occurs inside another one. ASCII letters match in both cases; other letters match as
    written, in lower case, in upper case and capitalised.

    An exception (`!妈妈的` for 妈的) allows the word as the last part of the whole exception: when a token completes the
    word, the text up to there must end with the exception. For a word with exceptions, the rule therefore also checks
    the text before the word, but only for tokens that would complete it.

    Args:
        words: Banned words, and exceptions that begin with `!`.
        pieces: Bytes of each token, `[V]`; empty for special tokens, so EOS is never forbidden. If no token contains a
            space (WordPiece, which adds spaces for display), spaces in the words are ignored.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[bytes]):
        self.pieces = [piece.lower() for piece in pieces]
        spaced = any(b" " in piece for piece in self.pieces)
        banned, exceptions = split_words(words)
        forms, harmless = spellings(banned, spaced), spellings(exceptions, spaced)
        self._harmless = frozenset(harmless)
        self._guarded = _ending(forms, harmless)
        unguarded = sorted(set(forms) - self._guarded)
        self.max_prefix_bytes = max(map(len, [*forms, *harmless]), default=0) - 1
        self._always = torch.tensor(_tokens_containing(unguarded, self.pieces), dtype=torch.int64)
        self._guarded_inside = _tokens_containing(self._guarded, self.pieces)
        order = sorted(range(len(self.pieces)), key=self.pieces.__getitem__)
        ordered = [self.pieces[token] for token in order]
        self._completing = Completions(unguarded, order, ordered)
        self._guarded_completing = Completions(self._guarded, order, ordered)

    def apply(self, logits: torch.Tensor, replies: Sequence[Sequence[int]]) -> None:
        """Set the logits `[B, V]` of tokens that would complete a banned word in their reply to -inf, in place."""
        logits[:, self._always.to(logits.device)] = -torch.inf
        for row, reply in enumerate(replies):
            end = self._last_bytes(reply)
            if self._guarded:
                logits[row, self._harmful_tokens(end).to(logits.device)] = -torch.inf
            for tail in _tails(end):
                for length in range(1, min(len(tail), self.max_prefix_bytes) + 1):
                    tokens = self._completing.after(tail[-length:])
                    if len(tokens):
                        logits[row, tokens.to(logits.device)] = -torch.inf

    def _harmful_tokens(self, end: bytes) -> torch.Tensor:
        """Return the tokens that complete a word with exceptions after `end`, but no exception, int64 `[N]`."""
        tokens = set(self._guarded_inside)
        for tail in _tails(end):
            for length in range(1, min(len(tail), self.max_prefix_bytes) + 1):
                tokens.update(self._guarded_completing.after(tail[-length:]).tolist())
        shown = len(end.decode("utf-8", "ignore").encode())
        harmful = sorted(token for token in tokens if self._is_harmful(end + self.pieces[token], shown))
        return torch.tensor(harmful, dtype=torch.int64)

    def _is_harmful(self, text: bytes, shown: int) -> bool:
        """Whether the text has a banned word that ends after the first `shown` bytes and is not inside an exception."""
        text = text.decode("utf-8", "ignore").encode()
        for end in range(shown + 1, len(text) + 1):
            for size in range(min(end, self.max_prefix_bytes + 1), 0, -1):
                ending = text[end - size : end]
                if ending in self._guarded:
                    return True
                if ending in self._harmless:  # all shorter words that end here are inside this exception
                    break
        return False

    def _last_bytes(self, reply: Sequence[int]) -> bytes:
        """Return the last bytes of a reply: as many as the longest banned word or exception can cover."""
        tail = b""
        for token in reversed(reply):
            if len(tail) >= self.max_prefix_bytes + UNFINISHED_BYTES:
                break
            tail = self.pieces[token] + tail
        return tail


def _tails(end: bytes) -> set[bytes]:
    """Return the possible ends of a reply: with and without the bytes of an unfinished character.

    These bytes are shown only if the next token continues the character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    complete = decoder.decode(end).encode()
    return {complete, complete + decoder.getstate()[0]}


def spellings(words: Sequence[str], spaced: bool) -> list[bytes]:
    """Return the bytes of all forms of the words: as written, lower case, upper case, capitalised."""
    forms = {form for word in words for form in (word, word.lower(), word.upper(), word.capitalize())}
    return sorted({(form if spaced else form.replace(" ", "")).encode().lower() for form in forms} - {b""})


def _ending(words: Collection[bytes], exceptions: Collection[bytes]) -> frozenset[bytes]:
    """Return the words with which a longer exception ends."""
    known = set(words)
    sizes = sorted({len(word) for word in known})
    ends = (exception[len(exception) - size :] for exception in exceptions for size in sizes if size < len(exception))
    return frozenset(end for end in ends if end in known)


class Completions:
    """The tokens that complete a word, by the beginning of the word.

    They are computed when a reply ends with this beginning. A table of all beginnings would have words times bytes
    times tokens entries: gigabytes for 20,000 words and a vocabulary in which many tokens begin alike.

    Args:
        words: The words.
        order: Token ids sorted by their bytes.
        ordered: The bytes of these tokens.
    """

    def __init__(self, words: Collection[bytes], order: Sequence[int], ordered: Sequence[bytes]):
        self._words = sorted(words)
        self._order = order
        self._ordered = ordered
        self._cache: dict[bytes, torch.Tensor] = {}
        self.cached_ids = 0

    def after(self, prefix: bytes) -> torch.Tensor:
        """Return the ids of the tokens that begin with the rest of a word that begins with `prefix`, int64 `[N]`."""
        tokens = self._cache.get(prefix)
        if tokens is not None:
            return tokens
        first = bisect_left(self._words, prefix)
        if first == len(self._words) or not self._words[first].startswith(prefix):
            return _NO_TOKENS
        tokens = self._tokens(first, len(prefix), bisect_left(self._words, prefix + b"\xff", first))
        if self.cached_ids + len(tokens) + len(prefix) > CACHED_IDS:
            self._cache.clear()
            self.cached_ids = 0
        self._cache[prefix] = tokens
        self.cached_ids += len(tokens) + len(prefix)
        return tokens

    def _tokens(self, first: int, size: int, last: int) -> torch.Tensor:
        """Return the ids of the tokens that begin with the rest, after `size` bytes, of one of a range of words."""
        ids: list[int] = []
        end = 0  # of the tokens of the rest before; the rests ascend, so the tokens of the next one follow or are among them
        for word in self._words[first:last]:
            if rest := word[size:]:
                start = bisect_left(self._ordered, rest, end)
                if start == len(self._ordered):
                    break
                if self._ordered[start].startswith(rest):
                    end = bisect_left(self._ordered, rest + b"\xff", start)
                    ids += self._order[start:end]
        return torch.tensor(ids, dtype=torch.int64)


_NO_TOKENS = torch.empty(0, dtype=torch.int64)


def _tokens_containing(words: Collection[bytes], pieces: Sequence[bytes]) -> list[int]:
    """Return the ids of the tokens whose bytes contain one of the words."""
    shortest: list[bytes] = []  # without words that begin with another: at most one of them begins a text
    for word in sorted(words):
        if not shortest or not word.startswith(shortest[-1]):
            shortest.append(word)
    longest = max(map(len, shortest), default=0)

    def contains(piece: bytes) -> bool:
        for start in range(len(piece)):
            text = piece[start : start + longest]
            before = bisect_right(shortest, text)  # the word that begins the text is the last one up to it
            if before and text.startswith(shortest[before - 1]):
                return True
        return False

    return [token for token, piece in enumerate(pieces) if contains(piece)] if shortest else []

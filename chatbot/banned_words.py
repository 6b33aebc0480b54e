"""Words that a reply never says, whatever tokens would spell them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


class BannedWords:
    """Knows which tokens would complete a banned word.

    Works on the bytes of the text: UTF-8 never finds a character inside another one, and a word is found even where its
    characters are spelled byte by byte. Latin letters match in both cases.

    Args:
        words: What must not be said.
        pieces: The bytes of each token, `[V]`; special tokens have none, so the end of turn is never touched.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[bytes]):
        self.pieces = [piece.lower() for piece in pieces]
        spelled = sorted({word.encode("utf-8", "replace").lower() for word in words})
        self.longest = max(map(len, spelled), default=0) - 1
        inside = {token for token, piece in enumerate(self.pieces) if any(word in piece for word in spelled)}
        self._always = torch.tensor(sorted(inside), dtype=torch.int64)
        completing: defaultdict[bytes, set[int]] = defaultdict(set)
        for word in spelled:
            for cut in range(1, len(word)):
                rest = word[cut:]
                completing[word[:cut]].update(t for t, piece in enumerate(self.pieces) if piece.startswith(rest))
        self._after = {said: torch.tensor(sorted(tokens)) for said, tokens in completing.items() if tokens}

    def apply(self, logits: torch.Tensor, replies: Sequence[Sequence[int]]) -> None:
        """Sets the logits `[B, V]` of what would complete a word after each of the B replies to -inf, in place."""
        logits[:, self._always.to(logits.device)] = -torch.inf
        for row, reply in enumerate(replies):
            tail = b""
            for token in reversed(reply):
                if len(tail) >= self.longest:
                    break
                tail = self.pieces[token] + tail
            for length in range(1, min(len(tail), self.longest) + 1):
                tokens = self._after.get(tail[-length:])
                if tokens is not None:
                    logits[row, tokens.to(logits.device)] = -torch.inf


class BannedWordsProcessor(LogitsProcessor):
    """`BannedWords` for transformers' `generate()`; the prompt may hold them."""

    def __init__(self, words: BannedWords, prompt_tokens: int):
        self.words, self.prompt_tokens = words, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        self.words.apply(scores, input_ids[:, self.prompt_tokens :].tolist())
        return scores

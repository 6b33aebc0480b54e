"""Thinking: a block `<think>…</think>` that a chat model writes before its answer.

Reply length, EOS floor and rules against repetition start anew after `</think>`, because the block is not part of the
answer. EOS is forbidden inside the block. After `thinking_tokens` tokens `</think>` is forced, so every reply still
ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ThinkingTokens:
    """Tokens of a vocabulary that open and close a block.

    Attributes:
        open_id: Id of `<think>`.
        close_id: Id of `</think>`.
        is_opened: Whether the prompt of a thinking model ends inside a block, because the template opens it.
    """

    open_id: int
    close_id: int
    is_opened: bool

    def is_thinking(self, reply: Sequence[int]) -> bool:
        """Whether the next token of a reply is inside the block."""
        return self.close_id not in reply and (self.is_opened or list(reply[:1]) == [self.open_id])

    def segment(self, reply: Sequence[int]) -> Sequence[int]:
        """Return the part of a reply that the rules see: the answer if the block is closed, else the open block."""
        return reply[list(reply).index(self.close_id) + 1 :] if self.close_id in reply else reply

    def apply(
        self,
        logits: torch.Tensor,
        original: torch.Tensor,
        replies: Sequence[Sequence[int]],
        end_id: int,
        most_tokens: int,
    ) -> None:
        """Allow the tags where they may occur, and forbid EOS inside the block; changes `logits` in place.

        Args:
            logits: Logits `[B, V]`, -inf for banned tokens, the tags included.
            original: Logits `[B, V]` of the model.
            replies: The B replies so far.
            end_id: Id of the end of turn.
            most_tokens: Maximum number of tokens of a block.
        """
        for row, reply in enumerate(replies):
            if self.is_thinking(reply):
                logits[row, end_id] = -math.inf
                logits[row, self.close_id] = original[row, self.close_id]
                if len(reply) - (not self.is_opened) >= most_tokens or logits[row].amax() == -math.inf:
                    logits[row] = -math.inf
                    logits[row, self.close_id] = 0.0
            elif not reply:
                logits[row, self.open_id] = original[row, self.open_id]


def split_thinking(text: str, is_opened: bool, is_complete: bool) -> tuple[str, str]:
    """Return the thoughts and the answer of a reply; both only grow while the text grows.

    The tags may be tokens or ordinary text. If an unfinished text ends in what may become a tag, both omit this end.

    Args:
        text: Reply so far, with its tags.
        is_opened: Whether the prompt ends inside a block.
        is_complete: Whether the reply has ended.
    """
    body = text.lstrip()
    if body.startswith(OPEN):
        body = body.removeprefix(OPEN)
    elif not is_opened or (OPEN.startswith(body) and not is_complete):
        return "", "" if OPEN.startswith(body) and not is_complete else text.strip()
    thoughts, close, answer = body.partition(CLOSE)
    if not close and not is_complete:
        held = next((size for size in range(len(CLOSE) - 1, 0, -1) if thoughts.endswith(CLOSE[:size])), 0)
        thoughts = thoughts[: len(thoughts) - held]
    return thoughts.strip(), answer.strip()

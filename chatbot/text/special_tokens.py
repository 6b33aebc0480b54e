"""Special tokens of our tokenizers."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"
SPECIAL_TOKENS = (PAD, CLS, SEP)
UNKNOWN = "[UNK]"
"""Token for unknown characters; only BERT's vocabularies have one."""


def add_special_tokens(tokenizer: Tokenizer, names: Iterable[str] = SPECIAL_TOKENS) -> None:
    """Mark tokens of a tokenizer's vocabulary as special."""
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])

"""Turns of a dialogue: their text, speakers, units, and the window of turns that a model sees.

The `dialogpt` layout (苏剑林, "动手做个DialoGPT", kexue.fm/archives/7718) is

    [CLS] u0 [SEP] u1 [SEP] ... u_{m-1} [SEP]

Turn i is spoken by speaker `i mod 2`; the [SEP] that closes a turn belongs to it, and [CLS] has the speaker of the
turn that follows it. Every turn and every [SEP] carries loss, [CLS] does not. When old turns are dropped, speaker ids
still follow the absolute turn index.

The `chat_template` layout is the one of a chat model's template. `chatbot.text.layouts` has both.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.errors import XianliaoError

CJK = (
    "\u2e80-\u303f"  # radicals, CJK punctuation
    "\u3040-\u30ff"  # kana
    "\u3100-\u312f"  # bopomofo
    "\u31a0-\u31ff\u3200-\u4dbf"
    "\u4e00-\u9fff"  # unified ideographs
    "\uac00-\ud7af"
    "\uf900-\ufaff"
    "\ufe30-\ufe4f\uff00-\uffef"  # vertical, full-width and half-width forms
    "\U00020000-\U0003ffff"
)
"""Characters beside which spaces are removed, as a range for a character class."""

SPEAKERS = 2
"""Number of speakers of a dialogue: a person and the bot."""

RESERVE = 8
"""The reserve for the newest turn is the context length divided by this number."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE_BESIDE_CJK = re.compile(f"(?<! )(?:(?<=[{CJK}]) +| +(?=[{CJK}]))")
"""A match begins only at the first space of a run, because otherwise a run of n spaces would take n² steps."""


class DialogueError(XianliaoError):
    """A dialogue cannot be laid out as model input; the error message is written for the person who typed the text."""


@dataclass(frozen=True)
class Sample:
    """One dialogue as model input; the three lists have the same length T.

    Attributes:
        input_ids: Token ids.
        speaker_ids: 0 or 1 for every token (transformers calls them token_type_ids).
        labels: The token id if the token carries loss, else `IGNORED_LABEL`. Not shifted: the logits at position t-1
            predict `labels[t]`.
    """

    input_ids: list[int]
    speaker_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Prompt:
    """A history as model input, up to the first token of the reply.

    Attributes:
        pieces: One (input_ids, speaker_id) pair per turn; the first starts with [CLS] or the opening of the template,
            each ends with [SEP] or the marks of the template. The pieces are separate so that the model's state after
            each turn can be cached.
        reply_speaker: Speaker id of the reply, `1 - last speaker`.
        first_turn: Absolute index of the first turn that was not dropped.
    """

    pieces: tuple[tuple[tuple[int, ...], int], ...]
    reply_speaker: int
    first_turn: int

    @property
    def input_ids(self) -> list[int]:
        """Token ids of all pieces."""
        return [token for ids, _ in self.pieces for token in ids]

    @property
    def speaker_ids(self) -> list[int]:
        """Speaker id of each token."""
        return [speaker for ids, speaker in self.pieces for _ in ids]


def valid_text(text: str) -> str:
    """Return a text with U+FFFD for lone surrogates, which are not text and cannot be stored as UTF-8."""
    return _SURROGATE.sub("\ufffd", text)


def join_spaces(text: str) -> str:
    """Remove the spaces that touch a CJK character, as in spaced corpora; spaces between English words are kept.

    >>> join_spaces("我 爱 New York 啊")
    '我爱New York啊'
    """
    return _SPACE_BESIDE_CJK.sub("", text)


def clean_turn(text: str) -> str:
    """Return a turn as the model sees it, the same for training, chat and evaluation: valid, trimmed, spaces joined."""
    return join_spaces(valid_text(text).strip())


def count_units(turns: Sequence[str]) -> int:
    """Return the number of units in a dialogue: its code points after `join_spaces`, plus one per turn.

    Losses are given in nats per unit. Units do not depend on the tokenizer, so the losses of models with different
    tokenizers can be compared.
    """
    return sum(len(join_spaces(turn)) + 1 for turn in turns)


def speaker_of(turn_index: int) -> int:
    """Return the speaker id (0 or 1) of the turn with this absolute index."""
    return turn_index % SPEAKERS


def fit(turn_tokens: Sequence[int], context_tokens: int, opening_tokens: int = 1) -> int:
    """Return the absolute index of the first turn that the model still sees.

    Turns are appended one by one. Whenever the history ([CLS], turns, [SEP]s) becomes longer than `context_tokens`
    minus a reserve, the oldest turns are dropped until the history has at most half of `context_tokens`. The reserve
    leaves room for the newest turn: a message that fits into the reserve does not cause turns to be dropped. So it is
    known before the next message which turns the next prompt begins with, and their state can be computed ahead of
    time. The result depends on the dialogue alone, and the amortised cost of a turn is constant. The newest turn is
    always kept.

    Args:
        turn_tokens: Number of tokens of each turn, without [SEP].
        context_tokens: Longest history, in tokens.
        opening_tokens: Number of tokens before the first turn.
    """
    first, total, newest = 0, opening_tokens, len(turn_tokens) - 1
    for index, tokens in enumerate(turn_tokens):
        total += tokens + 1
        reserve = 0 if index == newest else context_tokens // RESERVE
        if total > context_tokens - reserve:
            while total > context_tokens // 2 and first < index:
                total -= turn_tokens[first] + 1
                first += 1
    return first

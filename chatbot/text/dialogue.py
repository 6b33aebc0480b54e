"""Turns of text to model input: the one place that knows the sample layout and speaker parity.

The `dialogpt` layout (苏剑林, "动手做个DialoGPT", kexue.fm/archives/7718) is

    [CLS] u0 [SEP] u1 [SEP] ... u_{m-1} [SEP]

Turn i is spoken by speaker `i mod 2`; the [SEP] that closes a turn belongs to it, and [CLS] takes the speaker of the
turn that follows it. Every turn and every [SEP] carries loss, [CLS] does not. When old turns are dropped, speaker ids
still follow the absolute turn index.

The `chat_template` layout is that of a chat model's own template.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.errors import XianliaoError

_CJK = (
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
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE_BESIDE_CJK = re.compile(f"(?<=[{_CJK}]) +| +(?=[{_CJK}])")


class DialogueError(XianliaoError):
    """A dialogue that cannot be laid out; the message is one sentence for the person who typed it."""


@dataclass(frozen=True)
class Sample:
    """One laid out dialogue; the three lists have the same length T.

    Attributes:
        input_ids: Token ids.
        speaker_ids: 0 or 1 for every token (transformers calls them token_type_ids).
        labels: The token id where it carries loss, `IGNORED_LABEL` elsewhere. Not shifted: the logits at position t-1
            predict `labels[t]`.
    """

    input_ids: list[int]
    speaker_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Prompt:
    """A laid out history that waits for its next turn.

    Attributes:
        pieces: One (input_ids, speaker_id) pair a turn; the first starts with [CLS] or what else opens a dialogue, each
            ends with [SEP] or what else leads on. Kept apart so that a session can remember the state after each turn.
        reply_speaker: Speaker id of the reply, `1 - last speaker`.
        first_turn: Absolute index of the first turn kept.
    """

    pieces: tuple[tuple[tuple[int, ...], int], ...]
    reply_speaker: int
    first_turn: int

    @property
    def input_ids(self) -> list[int]:
        return [token for ids, _ in self.pieces for token in ids]

    @property
    def speaker_ids(self) -> list[int]:
        return [speaker for ids, speaker in self.pieces for _ in ids]


def valid_text(text: str) -> str:
    """Text with lone surrogates, which are not text and cannot be stored as UTF-8, replaced by U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def join_spaces(text: str) -> str:
    """Drops the spaces that touch a CJK character, so spaced corpora read as Chinese and English words stay apart.

    >>> join_spaces("我 爱 New York 啊")
    '我爱New York啊'
    """
    return _SPACE_BESIDE_CJK.sub("", text)


def clean_turn(text: str) -> str:
    """A turn as the model sees it, the same for training, chat and evaluation: valid, trimmed, spaces joined."""
    return join_spaces(valid_text(text).strip())


def count_units(turns: Sequence[str]) -> int:
    """Units of nats/unit: the characters of the turns after space joining, plus one end of turn for each."""
    return sum(len(join_spaces(turn)) + 1 for turn in turns)


def speaker_of(turn_index: int) -> int:
    """Speaker id (0 or 1) of the turn with this absolute index."""
    return turn_index % 2


def fit(turn_tokens: Sequence[int], context_tokens: int, opening_tokens: int = 1) -> int:
    """Absolute index of the first turn that the model still sees.

    Turns are appended one by one; whenever the laid out history ([CLS], turns, [SEP]s) is longer than `context_tokens`,
    the oldest turns are dropped until it is at most half as long. So the answer is a pure function of the dialogue, and
    the cost of a turn is, amortised, constant. The newest turn is always kept.

    Args:
        turn_tokens: Number of tokens of each turn, [SEP] not counted.
        context_tokens: Longest history in tokens.
        opening_tokens: Tokens before the first turn.
    """
    first, total = 0, opening_tokens
    for index, tokens in enumerate(turn_tokens):
        total += tokens + 1
        if total > context_tokens:
            while total > context_tokens // 2 and first < index:
                total -= turn_tokens[first] + 1
                first += 1
    return first

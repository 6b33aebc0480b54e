"""How a reply is decoded: the settings, checked; their numbers come from a checkpoint's generation_config.json."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from chatbot.decoding.rules.eos_floor import EosFloor
from chatbot.decoding.rules.repetition import RepetitionRules
from chatbot.errors import XianliaoError
from chatbot.safety.words import lost_exceptions
from chatbot.text.dialogue import valid_text

Method = Literal["sample", "greedy", "beam"]


class ReplySettingsError(XianliaoError):
    """Decoding settings that cannot be used."""


@dataclass(frozen=True)
class ReplySettings:
    """How a reply is decoded.

    Attributes:
        method: `sample`, `greedy`, or `beam`.
        beams: Hypotheses that beam search keeps.
        candidates: Replies that are sampled to choose the best of (`chatbot.decoding.rerank`); 1 takes what comes.
        rank_backward: Weight of log p(context | reply), in nats per token of the context, in that choice.
        rank_similarity: Weight of the likeness to the bot's last replies and to the message, taken off in that choice.
        temperature: Divides the logits when sampling.
        top_k: Candidates kept when sampling; 0 keeps all.
        top_p: Probability mass of the nucleus when sampling; 1 keeps all.
        min_p: Keep tokens with at least this share of the best one's probability when sampling; 0 keeps all.
        typical_p: Mass of the tokens nearest to the expected information when sampling; 1 keeps all.
        repetition_penalty, no_repeat_ngram, repeat_cost: See `chatbot.decoding.rules.repetition.RepetitionRules`; 1 and 0 switch them
            off; repeat_cost infinite, or None, forbids.
        banned_words: Never said, whatever tokens spell them; letters of both cases. An entry that begins with `!` is an
            exception: it ends with a banned word, which may be said at the end of it (妈的 and !妈妈的).
        keep_eos: Whether truncation always keeps EOS.
        floor_start_tokens, floor_delta_tokens: t0 and delta of `chatbot.decoding.rules.eos_floor`; t0 None switches the floor off.
        max_reply_tokens: Force EOS after so many tokens; None is t0 + 2 delta.
        min_reply_tokens: EOS is not allowed before so many tokens.
    """

    method: Method = "sample"
    beams: int = 4
    candidates: int = 1
    rank_backward: float = 0.0
    rank_similarity: float = 0.0
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    repeat_cost: float | None = None
    banned_words: tuple[str, ...] = ()
    keep_eos: bool = True
    floor_start_tokens: int | None = 64
    floor_delta_tokens: int = 32
    max_reply_tokens: int | None = None
    min_reply_tokens: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned_words", _words(self.banned_words))
        if self.repeat_cost == float("inf"):  # one way to say it
            object.__setattr__(self, "repeat_cost", None)
        for find in (self._wrong_kinds, self._wrong_values, self._wrong_together):
            if faults := find():
                raise ReplySettingsError("Decoding: " + "; ".join(faults) + ".")

    def _wrong_kinds(self) -> list[str]:
        faults = [] if isinstance(self.keep_eos, bool) else [f"keep_eos must be true or false, got {self.keep_eos!r}"]
        for name in RANGES:
            value = getattr(self, name)
            whole = name in WHOLE
            right = _is_whole(value) if whole else _is_number(value)
            if not right and not (value is None and name in OPTIONAL):
                faults.append(f"{name} must be a {'whole ' * whole}number, got {value!r}")
        return faults

    def _wrong_values(self) -> list[str]:
        faults = []
        if self.method not in get_args(Method):
            faults.append(f"method is sample, greedy or beam, not {self.method}")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is None or least <= value <= most:
                continue
            hint = " (use greedy for 0)" if name == "temperature" else ""
            wanted = f"at least {least}" if most == float("inf") else f"between {least} and {most}"
            wanted = f"at least {least} and at most {most}" if most == _MANY else wanted
            faults.append(f"{name} must be {wanted}, got {value}{hint}")
        faults += [f"{name} must be above 0, got 0" for name in ("top_p", "typical_p") if getattr(self, name) == 0]
        return faults

    def _wrong_together(self) -> list[str]:
        faults = []
        if self.floor_start_tokens is not None and self.floor_start_tokens < self.min_reply_tokens:
            faults.append(f"floor_start_tokens ({self.floor_start_tokens}) must not be below min_reply_tokens")
        if self.floor_start_tokens is None and self.max_reply_tokens is None:
            faults.append("without a floor, max_reply_tokens must be given: a reply might never end")
        if self.max_reply_tokens is not None and self.max_reply_tokens < self.min_reply_tokens:
            faults.append(f"max_reply_tokens must be at least min_reply_tokens, got {self.max_reply_tokens}")
        if self.candidates > 1 and self.method != "sample":
            faults.append(f"candidates are sampled: leave them out with method {self.method}")
        return faults

    @property
    def floor(self) -> EosFloor | None:
        if self.floor_start_tokens is None:
            return None
        return EosFloor(self.floor_start_tokens, self.floor_delta_tokens)

    def repetition(self, end_id: int) -> RepetitionRules | None:
        """The rules against repetition, or None where they are off."""
        if self.repetition_penalty == 1 and not self.no_repeat_ngram:
            return None
        cost = float("inf") if self.repeat_cost is None else self.repeat_cost
        return RepetitionRules(self.repetition_penalty, self.no_repeat_ngram, end_id, cost)

    @property
    def limit_tokens(self) -> int:
        """The most tokens a reply has before EOS is forced; never beyond the floor's own limit."""
        limits = [self.max_reply_tokens, self.floor.limit_tokens if self.floor else None]
        return min(limit for limit in limits if limit is not None)

    @property
    def bound_tokens(self) -> int:
        """The most tokens a reply has: greedy and beam search end by t0 + delta + 1 on their own."""
        if self.method == "sample" or self.floor is None:
            return self.limit_tokens
        return min(self.limit_tokens, self.floor_start_tokens + self.floor_delta_tokens + 1)

    def with_changes(self, **changes) -> ReplySettings:
        """A copy in which the given settings, those that are not None, differ.

        Raises:
            ReplySettingsError: A setting is unknown, or its value cannot be used.
        """
        unknown = sorted(set(changes) - {field.name for field in fields(self)})
        if unknown:
            raise ReplySettingsError(f"Decoding: there is no setting {', '.join(unknown)}.")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


_MANY = 10**6
RANGES: dict[str, tuple[float, float]] = {
    **{"beams": (1, 64), "candidates": (1, 64), "rank_backward": (0, _MANY), "rank_similarity": (0, _MANY)},
    **{"temperature": (0.01, 100), "top_k": (0, _MANY), "top_p": (0, 1), "min_p": (0, 1), "typical_p": (0, 1)},
    **{"repetition_penalty": (1, 10), "no_repeat_ngram": (0, _MANY), "repeat_cost": (0, float("inf"))},
    **{"floor_start_tokens": (0, _MANY), "floor_delta_tokens": (1, _MANY)},
    **{"max_reply_tokens": (1, _MANY), "min_reply_tokens": (0, _MANY)},
}
"""Least and most of each number."""
WHOLE = {"beams", "candidates", "top_k", "no_repeat_ngram", "floor_start_tokens", "floor_delta_tokens"}
WHOLE |= {"max_reply_tokens", "min_reply_tokens"}
OPTIONAL = {"floor_start_tokens", "max_reply_tokens", "repeat_cost"}


def settings_from(generation: dict) -> ReplySettings:
    """`ReplySettings` from the content of generation_config.json; keys of transformers' own are passed over."""
    known = {field.name for field in fields(ReplySettings)} - {"method", "keep_eos", "max_reply_tokens"}
    return ReplySettings(**{name: value for name, value in generation.items() if name in known and value is not None})


def _words(words: object) -> tuple[str, ...]:
    def is_word(word: object) -> bool:
        return isinstance(word, str) and bool(word.strip()) and valid_text(word) == word

    if not isinstance(words, (list, tuple)) or not all(map(is_word, words)):
        raise ReplySettingsError(f"Decoding: banned_words must be a list of words, got {words!r}.")
    words = tuple(word.strip() for word in words)
    if lost := lost_exceptions(words):
        raise ReplySettingsError(
            f"Decoding: banned_words has the exception {lost[0]!r}, which ends with no banned word."
        )
    return words


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

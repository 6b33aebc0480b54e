"""Decoding settings: fields, defaults, ranges and help texts, for Python, the command line and checkpoints.

Importing this module needs neither torch nor transformers, so that `--help` answers quickly.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Literal, get_args

from chatbot.decoding.rules.token_lists import checked_bias, checked_words
from chatbot.errors import ReplySettingsError, shown

if TYPE_CHECKING:
    from chatbot.decoding.rules.eos_floor import EosFloor

Method = Literal["sample", "greedy", "beam"]
Script = Literal["typed", "simplified", "asker"]
Thinking = Literal["plain", "off", "hidden", "shown"]

MAX_NUMBER = 10**6
"""Maximum of settings without a natural maximum."""

MAX_STORED_LIMIT_TOKENS = 4096
"""Maximum reply length that generation_config.json may set, so that no checkpoint can keep a server busy."""

FORBIDDING_NATS = 1e30
"""A `repeat_cost` of this value or more is treated as infinite, because the sum of several would overflow float32."""


class Unchanged(Enum):
    """Type of `UNCHANGED`."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED
"""Value for `with_changes` that leaves a setting unchanged; None would switch it off."""


def _setting(default: Any, help: str, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Return a dataclass field for a number or a switch, with its default, help text and range."""
    return field(default=default, metadata=_described(help, minimum, maximum))


def _described(help: str, minimum: float | None = None, maximum: float | None = None) -> dict[str, Any]:
    return {"help": help, "minimum": minimum, "maximum": maximum}


@dataclass(frozen=True)
class ReplySettings:
    """Decoding settings of a reply; `OPTIONS` lists the numeric settings with their ranges.

    The help text of each field says what it does. These values switch a setting off: None for `floor_start_tokens`, 1
    for `repetition_penalty`, `top_p` and `typical_p`, and 0 for `no_repeat_ngram`, `top_k`, `min_p`, `top_n_sigma`,
    `xtc_probability` and `dry_multiplier`. A `repeat_cost` of None or infinity forbids repeated n-grams. If
    `max_reply_tokens` is None, the limit is t0 + 2 delta (`chatbot.decoding.rules.eos_floor`). With
    `floor_max_start_tokens`, `with_changes` raises t0 where a larger `max_reply_tokens` is asked for. `logit_bias` is a
    mapping, or pairs, of token ids and nats; it is stored as sorted pairs.

    An entry of `banned_words` that begins with `!` is an exception, a longer word that ends with a banned word and is
    allowed: the entries 妈的 and !妈妈的 forbid 妈的, but not 妈妈的.
    """

    method: Method = field(default="sample", metadata=_described("sample, greedy or beam"))
    beams: int = _setting(4, "hypotheses that beam search keeps", 1, 64)
    candidates: int = _setting(1, "replies to sample, of which the best is chosen (1: no choice)", 1, 64)
    rank_backward: float = _setting(
        0.0, "weight of log p(context | reply), by the backward model, in the choice of the best reply", 0, MAX_NUMBER
    )
    rank_prior: float = _setting(
        0.0,
        "weight of -log p(reply without context) in the choice of the best reply, against replies that fit anything",
        0,
        MAX_NUMBER,
    )
    rank_similarity: float = _setting(
        0.0, "penalty for likeness to the message and last replies, in the choice of the best reply", 0, MAX_NUMBER
    )
    temperature: float = _setting(0.7, "divides the logits when sampling", 0.01, 100)
    top_k: int = _setting(0, "keep the K most likely tokens when sampling (0: all)", 0, MAX_NUMBER)
    top_p: float = _setting(0.9, "probability mass of the nucleus when sampling (1: all tokens)", 0, 1)
    min_p: float = _setting(
        0.0, "keep tokens with at least this share of the highest probability when sampling (0: all)", 0, 1
    )
    typical_p: float = _setting(
        1.0, "probability mass of the tokens with the most typical information when sampling (1: all)", 0, 1
    )
    top_n_sigma: float = _setting(
        0.0, "keep tokens within this many standard deviations of the best logit (0: all)", 0, 100
    )
    xtc_probability: float = _setting(0.0, "share of the steps in which XTC drops the likeliest words (0: off)", 0, 1)
    xtc_threshold: float = _setting(
        0.1, "XTC drops words of at least this probability, except the least likely of them", 0, 1
    )
    dry_multiplier: float = _setting(0.0, "DRY: nats that a token loses if it continues a repetition (0: off)", 0, 100)
    dry_base: float = _setting(1.75, "DRY: factor of that loss for each further repeated token", 1, 100)
    dry_allowed_length: int = _setting(2, "DRY: number of repeated tokens from which the loss begins", 1, MAX_NUMBER)
    repetition_penalty: float = _setting(
        1.0, "divides the logits of the tokens in this reply and in the last replies (1: off)", 1, 10
    )
    no_repeat_ngram: int = _setting(0, "length of the n-grams that should not occur twice (0: off)", 0, MAX_NUMBER)
    repeat_cost: float | None = _setting(
        None, "nats that a token loses for each earlier time that it completed the n-gram (inf: never again)", 0, inf
    )
    presence_penalty: float = _setting(0.0, "nats that tokens of this reply lose (0: off; below 0 they gain)", -2, 2)
    frequency_penalty: float = _setting(
        0.0, "nats that a token loses for each time that this reply has it (0: off)", -2, 2
    )
    logit_bias: tuple[tuple[int, float], ...] = _setting((), "nats that are added to the logits of tokens, -100 to 100")
    banned_words: tuple[str, ...] = _setting((), "words that no reply contains; !WORD is an exception")
    keep_eos: bool = _setting(True, "keep the end of turn among the candidates in every truncation")
    floor_start_tokens: int | None = _setting(
        64, "t0: tokens after which the probability of the end is raised, see delta", 0, MAX_NUMBER
    )
    floor_delta_tokens: int = _setting(
        32, "delta: tokens after t0 until the end has at least half of the probability", 1, MAX_NUMBER
    )
    floor_max_start_tokens: int | None = _setting(
        None, "raise t0 to a larger max_reply_tokens, at most to this number (default: t0 is not raised)", 0, MAX_NUMBER
    )
    max_reply_tokens: int | None = _setting(
        None, "tokens after which the reply is cut off (default: t0 + 2 delta)", 1, MAX_NUMBER
    )
    min_reply_tokens: int = _setting(1, "tokens before which the reply cannot end", 0, MAX_NUMBER)
    top_logprobs: int | None = _setting(
        None, "record log p of each token and of the K most likely ones (default: nothing)", 0, 20
    )
    script: Script = field(
        default="typed",
        metadata=_described(
            "typed: characters are read as typed; simplified: traditional characters are read as simplified ones; asker:"
            " as simplified, but the reply is written in the script of the messages (default: the checkpoint's)"
        ),
    )
    thinking: Thinking = field(
        default="plain",
        metadata=_described(
            "whether a chat model thinks, in a block <think>…</think>, before it answers. plain: no, and enable_thinking"
            " is not set in the chat template; off: no, with enable_thinking=false; hidden: yes, but only the answer is"
            " shown; shown: yes, and both are shown (default: the checkpoint's)"
        ),
    )
    thinking_tokens: int = _setting(512, "tokens after which a thinking block is closed", 1, MAX_NUMBER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned_words", checked_words(self.banned_words))
        object.__setattr__(self, "logit_bias", checked_bias(self.logit_bias))
        cost = self.repeat_cost
        if cost is not None and _is_number(cost) and cost >= FORBIDDING_NATS:  # equal settings must compare equal
            object.__setattr__(self, "repeat_cost", None)
        for check in (self._wrong_kinds, self._wrong_values, self._wrong_together):
            if faults := check():
                raise ReplySettingsError("Decoding: " + "; ".join(faults) + ".")
        for option in OPTIONS:  # tensors take no integer beyond 64 bits
            if option.kind is float and isinstance(value := getattr(self, option.name), int):
                object.__setattr__(self, option.name, float(value))

    def _wrong_kinds(self) -> list[str]:
        faults = (
            [] if isinstance(self.keep_eos, bool) else [f"keep_eos must be true or false, got {shown(self.keep_eos)}"]
        )
        for option in OPTIONS:
            value = getattr(self, option.name)
            is_right = _is_whole(value) if option.kind is int else _is_number(value)
            if not is_right and not (value is None and option.can_be_off):
                kind = "whole number" if option.kind is int else "number"
                faults.append(f"{option.name} must be a {kind}, got {shown(value)}")
        return faults

    def _wrong_values(self) -> list[str]:
        faults = []
        if self.method not in get_args(Method):
            faults.append(f"method must be 'sample', 'greedy' or 'beam', got {shown(self.method)}")
        if self.script not in get_args(Script):
            faults.append(f"script must be 'typed', 'simplified' or 'asker', got {shown(self.script)}")
        if self.thinking not in get_args(Thinking):
            faults.append(f"thinking must be 'plain', 'off', 'hidden' or 'shown', got {shown(self.thinking)}")
        for option in OPTIONS:
            value = getattr(self, option.name)
            if value is None or option.minimum <= value <= option.maximum:
                continue
            hint = " (for 0, use method 'greedy')" if option.name == "temperature" else ""
            faults.append(f"{option.name} must be {option.range}, got {value}{hint}")
        faults += [f"{name} must be above 0, got 0" for name in ("top_p", "typical_p") if getattr(self, name) == 0]
        return faults

    def _wrong_together(self) -> list[str]:
        faults = []
        if self.floor_start_tokens is not None and self.floor_start_tokens < self.min_reply_tokens:
            faults.append(f"floor_start_tokens ({self.floor_start_tokens}) must not be below min_reply_tokens")
        if self.floor_start_tokens is None and self.max_reply_tokens is None:
            faults.append("without a floor a reply might never end: give max_reply_tokens")
        if self.max_reply_tokens is not None and self.max_reply_tokens < self.min_reply_tokens:
            faults.append(f"max_reply_tokens must be at least min_reply_tokens, got {self.max_reply_tokens}")
        if self.candidates > 1 and self.method != "sample":
            faults.append(f"candidates are sampled: remove candidates or method {self.method}")
        if self.top_logprobs is not None and self.method == "beam":
            faults.append("beam search records no log-probabilities: remove top_logprobs or method beam")
        if self.thinks and (self.method == "beam" or self.candidates > 1 or self.top_logprobs is not None):
            faults.append(f"thinking {self.thinking} excludes beam search, several candidates and top_logprobs")
        return faults

    @property
    def thinks(self) -> bool:
        """Whether the model may write a thinking block."""
        return self.thinking in ("hidden", "shown")

    @property
    def floor(self) -> EosFloor | None:
        """EOS floor, or None if it is off."""
        from chatbot.decoding.rules.eos_floor import EosFloor  # needs torch

        if self.floor_start_tokens is None:
            return None
        return EosFloor(self.floor_start_tokens, self.floor_delta_tokens)

    @property
    def limit_tokens(self) -> int:
        """Maximum number of tokens of a reply before EOS is forced; at most t0 + 2 delta."""
        return min(limit for limit in (self.max_reply_tokens, self._floor_limit_tokens) if limit is not None)

    @property
    def _floor_limit_tokens(self) -> int | None:
        """`EosFloor.limit_tokens`, without importing torch; None if the floor is off."""
        return None if self.floor_start_tokens is None else self.floor_start_tokens + 2 * self.floor_delta_tokens

    @property
    def bound_tokens(self) -> int:
        """Maximum number of tokens of a reply; for greedy and beam search at most t0 + delta + 1 if the floor is on."""
        if self.method == "sample" or self.floor_start_tokens is None:
            return self.limit_tokens
        return min(self.limit_tokens, self.floor_start_tokens + self.floor_delta_tokens + 1)

    def with_changes(self, **changes: Any) -> ReplySettings:
        """Return a copy with these settings; None switches a setting off, and `UNCHANGED` leaves it as it is.

        If the method is not sampling, the number of candidates becomes 1, unless the changes set it.

        Raises:
            ReplySettingsError: A setting is unknown, or its value cannot be used.
        """
        check_names(changes)
        changed = {name: value for name, value in changes.items() if value is not UNCHANGED}
        if changed.get("method") in ("greedy", "beam"):
            changed.setdefault("candidates", 1)
        start, asked = self.floor_start_tokens, changed.get("max_reply_tokens")
        most: Any = changed.get("floor_max_start_tokens", self.floor_max_start_tokens)
        if start is not None and asked is not None and _is_whole(asked) and _is_whole(most):
            changed.setdefault("floor_start_tokens", max(start, min(asked, most)))
        return replace(self, **changed)


@dataclass(frozen=True)
class Option:
    """A numeric setting.

    Attributes:
        name: Field of `ReplySettings`.
        kind: Type of the value.
        help: Help text in one line.
        minimum, maximum: Range of the value.
        can_be_off: Whether None, which switches the setting off, is allowed.
    """

    name: str
    kind: type[int] | type[float]
    help: str
    minimum: float
    maximum: float
    can_be_off: bool

    @property
    def range(self) -> str:
        """Allowed values, in words."""
        if self.maximum == inf:
            return f"at least {self.minimum}"
        if self.maximum == MAX_NUMBER:
            return f"at least {self.minimum} and at most {self.maximum}"
        return f"between {self.minimum} and {self.maximum}"


NAMES = tuple(entry.name for entry in fields(ReplySettings))
OPTIONS = tuple(
    Option(
        entry.name,
        int if str(entry.type).startswith("int") else float,
        entry.metadata["help"],
        entry.metadata["minimum"],
        entry.metadata["maximum"],
        "None" in str(entry.type),
    )
    for entry in fields(ReplySettings)
    if entry.metadata["minimum"] is not None
)
"""Settings that are numbers, in the order of the fields."""


def check_names(names: Iterable[str]) -> None:
    """Check that all names are settings.

    Raises:
        ReplySettingsError: A name is unknown; the message suggests the nearest one.
    """
    if unknown := sorted(set(names) - set(NAMES)):
        nearest = difflib.get_close_matches(unknown[0], NAMES, 1, cutoff=0)[0]
        raise ReplySettingsError(f"Decoding: no setting {', '.join(unknown)}; did you mean {nearest}?")


def settings_from(generation: Mapping[str, Any]) -> ReplySettings:
    """Return the settings in the content of generation_config.json; keys that only transformers knows are ignored.

    Null switches off a setting that can be switched off; for other settings it means the default. `do_sample` false means
    the method greedy, unless `method` is given.

    Raises:
        ReplySettingsError: A value cannot be used.
    """
    can_be_off = {option.name for option in OPTIONS if option.can_be_off}
    known = {name for name, value in generation.items() if name in NAMES and (value is not None or name in can_be_off)}
    values = {name: generation[name] for name in known}
    if generation.get("do_sample") is False:
        values.setdefault("method", "greedy")
    settings = ReplySettings(**values)
    limit = settings._floor_limit_tokens or settings.limit_tokens  # a request may raise max_reply_tokens
    limit = max(limit, settings.thinking_tokens, settings.floor_max_start_tokens or 0)
    if limit > MAX_STORED_LIMIT_TOKENS:
        raise ReplySettingsError(
            f"Decoding: a reply could have {limit} tokens. Lower floor_start_tokens, floor_max_start_tokens,"
            " floor_delta_tokens, max_reply_tokens or thinking_tokens, so that the limit is at most"
            f" {MAX_STORED_LIMIT_TOKENS}."
        )
    return settings


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""From a raw dialogue to clean ones: applies the rules of `data_prep.cleaning.rules` until no rule changes anything.

A turn that a filter matches is dirty. A dirty turn is removed and the dialogue is cut there. Two or more turns between
two dirty turns are kept as a dialogue; a single one is removed too (`ONE_TURN`). So one bad turn does not remove a long
conversation, and no turn is paired with a turn that it does not answer. A dialogue of more than `MAX_TURNS` turns is
cut too, because statistics and training have a limit. Every dialogue that was read is in exactly one of three classes:
kept whole, split or dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from chatbot.text.characters import HAN
from chatbot.text.dialogue import clean_turn
from data_prep.cleaning.blocked_words import WORDS, BlockedWords
from data_prep.cleaning.ledger import Ledger
from data_prep.cleaning.rule import Filter, Normaliser, Rule
from data_prep.cleaning.rules import FILTERS, NORMALISERS
from data_prep.reading.records import MAX_TURNS
from data_prep.settings import CleanSettings

NOTHING_LEFT, TOO_LONG, BLOCKED, ECHO = "nothing_left", "too_long", "blocked_words", "echo"
ONE_TURN = "fewer_than_two_turns"
ECHO_CHARACTERS = 5
"""Minimum length of an echo, in characters; people often answer a shorter turn with the same words: 晚安, 晚安."""

DIALOGUE_RULES = (
    Rule(BLOCKED, "remove turns with a word of the list"),
    Rule(ECHO, "remove a turn of 5 or more characters that repeats the turn before it"),
)
RULES: dict[str, Rule] = {rule.name: rule for rule in (*NORMALISERS, *FILTERS, *DIALOGUE_RULES)}
"""Rules for single dialogues, by name."""

_REPEATS = "repeats"
_SPACE_RULES = (
    "control_characters",
    "spaced_letters",
    "full_width",
    "repost_marks",
    "reply_marks",
    "emails",
    "urls",
    "mentions",
    "hashtags",
)
"""Rules for which a space ends a name or an address: they run before the spaces beside Chinese are removed."""

_PLAIN = re.compile("[，。！？、；：《》～…“”]*[\u4e00-\u9fff][\u4e00-\u9fff，。！？、；：《》～…“”]*")
"""Text that no normaliser but `repeats` changes once its spaces are removed: most of LCCC."""
_NOT_CJK = re.compile("[…“”]")
_LOOSE_SPACE = re.compile("(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])")
_HAN_PAIR, _SPACED_PAIR = re.compile(f"[{HAN}][{HAN}]"), re.compile(f"[{HAN}] +[{HAN}]")


class Cleaner:
    """The rules that are switched on, ready to run.

    Args:
        settings: Switches and limits.
        has_shortcut: Whether to skip rules that cannot change plain Chinese text; the result is the same.

    Raises:
        FileError: The word list cannot be read or is empty, or a rule needs a library that is not installed.
    """

    def __init__(self, settings: CleanSettings, has_shortcut: bool = True):
        self._max_characters = settings.max_characters
        self._normalisers = [(rule.name, rule.apply) for rule in NORMALISERS if settings.is_on(rule)]
        self._space_rules = [(name, apply) for name, apply in self._normalisers if name in _SPACE_RULES]
        self._filters = [(rule.name, rule.matches) for rule in FILTERS if settings.is_on(rule)]
        self._plain_filters = [(name, matches) for name, matches in self._filters if name != "no_chinese"]
        by_name = dict(self._normalisers)
        self._repeats = by_name.get(_REPEATS)
        self._has_shortcut = has_shortcut and "traditional" not in by_name
        self._removes_echoes = settings.is_on(RULES[ECHO])
        self._blocked_words: BlockedWords | None = None
        if settings.is_on(RULES[BLOCKED]):
            self._blocked_words = BlockedWords(Path(settings.words) if settings.words else WORDS)
        if "traditional" in by_name:
            by_name["traditional"]("")  # raises now, not in a worker, if OpenCC is not installed

    def pieces(self, turns: Sequence[str], ledger: Ledger) -> tuple[list[list[str]], list[tuple[int, str]]]:
        """Clean a dialogue.

        Args:
            turns: Turns of the raw dialogue.
            ledger: Counts are added to it.

        Returns:
            The clean dialogues, in order, each of two or more turns; and (index, reason) of every other turn.
        """
        pieces: list[list[str]] = [[]]
        ends: list[int] = []  # of each piece but the last: the index behind its last turn
        dirty: list[tuple[int, str]] = []
        for index, turn in enumerate(turns):
            text, reason = self.turn(turn, ledger)
            if reason is None and self._is_echo(text, pieces[-1]):
                reason = ECHO
            if reason is None:
                if len(pieces[-1]) == MAX_TURNS:
                    pieces.append([])
                    ends.append(index)
                pieces[-1].append(text)
            else:
                dirty.append((index, reason))
                if pieces[-1]:
                    pieces.append([])
                    ends.append(index)
        alone = [end - 1 for end, piece in zip((*ends, len(turns)), pieces, strict=True) if len(piece) == 1]
        lost = sorted(dirty + [(index, ONE_TURN) for index in alone])
        for index, reason in lost:
            ledger.dirty[reason] += 1
            ledger.add_sample(reason, turns[index])
        ledger.turns["removed"] += len(lost)
        pieces = [piece for piece in pieces if len(piece) > 1]
        ledger.pieces += len(pieces)
        if pieces:
            ledger.dialogues["read"] += 1
            ledger.dialogues["split" if lost or len(turns) > MAX_TURNS else "kept_whole"] += 1
        else:
            ledger.drop(dirty[0][1] if dirty else ONE_TURN)
        return pieces, lost

    def _is_echo(self, text: str, before: Sequence[str]) -> bool:
        return self._removes_echoes and len(text) >= ECHO_CHARACTERS and bool(before) and before[-1] == text

    def turn(self, turn: str, ledger: Ledger) -> tuple[str, str | None]:
        """Clean a turn; return its text, and the reason why it is dirty, or None if it is clean."""
        if len(turn) > 16 * self._max_characters:  # too long to search
            return "", TOO_LONG
        if self._has_shortcut:
            text = turn.replace(" ", "")
            if _PLAIN.fullmatch(text) and (len(text) == len(turn) or not _NOT_CJK.search(text) or _is_spaced(turn)):
                return self._plain_turn(text, ledger)
        text = self._normalise(turn, ledger)
        return text, self._reason(text, self._filters)

    def _plain_turn(self, text: str, ledger: Ledger) -> tuple[str, str | None]:
        if self._repeats is not None:
            before, text = text, self._repeats(text)
            if text != before:
                ledger.changed[_REPEATS] += 1
                ledger.add_sample(_REPEATS, before, text)
        return text, self._reason(text, self._plain_filters)

    def _normalise(self, turn: str, ledger: Ledger) -> str:
        changes: dict[str, tuple[str, str]] = {}
        text = _apply(self._space_rules, turn, changes)
        text = _LOOSE_SPACE.sub("", text) if _is_spaced(turn) else text
        before, text = None, clean_turn(text)
        while text != before:
            before, text = text, clean_turn(_apply(self._normalisers, text, changes))
        for name, (old, new) in changes.items():
            ledger.changed[name] += 1
            ledger.add_sample(name, old, new)
        return text

    def _reason(self, text: str, filters: Iterable[tuple[str, Filter]]) -> str | None:
        if not text:
            return NOTHING_LEFT
        if len(text) > self._max_characters:
            return TOO_LONG
        if self._blocked_words is not None and self._blocked_words.is_in(text):
            return BLOCKED
        for name, matches in filters:
            if matches(text):
                return name
        return None


def _apply(rules: Iterable[tuple[str, Normaliser]], text: str, changes: dict[str, tuple[str, str]]) -> str:
    """Return the text after the rules; add the first change by each rule to `changes`, as (before, after)."""
    for name, apply in rules:
        changed = apply(text)
        if changed != text:
            changes.setdefault(name, (text, changed))
            text = changed
    return text


def _is_spaced(text: str) -> bool:
    """Whether spaces separate all neighbouring Chinese characters, as in LCCC, and so have no meaning."""
    return _SPACED_PAIR.search(text) is not None and _HAN_PAIR.search(text) is None

"""From a raw dialogue to clean ones: the rules of `data_prep.cleaning.rules` to a fixed point, and what becomes of the rest.

A turn that a filter meets is dirty. It goes, and the dialogue is cut there: what lies between two dirty turns is a
dialogue of its own if it has two turns or more, so one bad line does not cost a long conversation, and no turn is made
the answer to something it does not answer. Every dialogue read is exactly one of kept whole, split and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import ahocorasick

from chatbot.errors import FileError, first_line
from chatbot.text.dialogue import clean_turn
from data_prep.cleaning.ledger import Ledger
from data_prep.cleaning.rules import FILTERS, HAN, NORMALISERS, Rule
from data_prep.settings import CleanSettings

WORDS = Path(__file__).with_name("words.txt")
NOTHING_LEFT, TOO_LONG, BLOCKED, ECHO = "nothing_left", "too_long", "blocked_words", "echo"
ONE_TURN = "fewer_than_two_turns"
ECHO_CHARACTERS = 5
"""Shorter turns are often answered in kind: 晚安, 晚安."""

DIALOGUE_RULES = (
    Rule(BLOCKED, "turns with a word of the list"),
    Rule(ECHO, "a turn of five characters and more that repeats the one before it"),
)
RULES = {rule.name: rule for rule in (*NORMALISERS, *FILTERS, *DIALOGUE_RULES)}
"""All rules that can be switched, by name."""


# Text that no normaliser but `repeats` touches once its spaces are joined: most of LCCC, on a short way.
_PLAIN = re.compile("[，。！？、；：《》～…“”]*[\u4e00-\u9fff][\u4e00-\u9fff，。！？、；：《》～…“”]*")
_NOT_CJK = re.compile("[…“”]")
_REPEATS = "repeats"
_NEED_SPACES = (
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
"""Rules for which a space says where a name or an address ends: they come before spaces beside Chinese are joined."""

_LOOSE_SPACE = re.compile("(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])")
_HAN_PAIR, _SPACED_PAIR = re.compile(f"[{HAN}][{HAN}]"), re.compile(f"[{HAN}] +[{HAN}]")


class Cleaner:
    """The rules that are on, ready to run.

    Args:
        settings: Which.
        short_way: Take the short way where a turn allows it; the result is the same.

    Raises:
        FileError: The word list cannot be read or holds no word, or a rule needs a library that is not there.
    """

    def __init__(self, settings: CleanSettings, short_way: bool = True):
        self.settings = settings
        self._normalisers = [(rule.name, rule.apply) for rule in NORMALISERS if settings.is_on(rule)]
        self._spaced = [(name, rule) for name, rule in self._normalisers if name in _NEED_SPACES]
        self._filters = [(rule.name, rule.apply) for rule in FILTERS if settings.is_on(rule)]
        self._plain_filters = [(name, rule) for name, rule in self._filters if name != "no_chinese"]
        names = dict(self._normalisers)
        self._repeats = names.get(_REPEATS)
        self._short_way = short_way and "traditional" not in names
        self._no_echo = settings.is_on(RULES[ECHO])
        self._words = None
        if settings.is_on(RULES[BLOCKED]):
            self._words = _automaton(_read_words(Path(settings.words) if settings.words else WORDS))
        if "traditional" in names:
            names["traditional"]("")  # says now that OpenCC is missing

    def pieces(self, turns: Sequence[str], ledger: Ledger) -> tuple[list[list[str]], list[tuple[int, str]]]:
        """The clean dialogues in a raw one, in order, each of two turns or more, and (index, reason) of dirty turns.

        Args:
            turns: Of one dialogue.
            ledger: Takes the counts.
        """
        pieces: list[list[str]] = [[]]
        dirty: list[tuple[int, str]] = []
        for index, turn in enumerate(turns):
            text, reason = self.turn(turn, ledger)
            if (
                reason is None
                and self._no_echo
                and pieces[-1]
                and len(text) >= ECHO_CHARACTERS
                and pieces[-1][-1] == text
            ):
                reason = ECHO
            if reason is None:
                pieces[-1].append(text)
            else:
                dirty.append((index, reason))
                ledger.dirty[reason] += 1
                ledger.show(reason, turn)
                pieces.append([])
        pieces = [piece for piece in pieces if len(piece) > 1]
        ledger.pieces += len(pieces)
        if not pieces:
            ledger.drop(dirty[0][1] if dirty else ONE_TURN)
        else:
            ledger.dialogues["read"] += 1
            ledger.dialogues["split" if dirty else "kept_whole"] += 1
        return pieces, dirty

    def turn(self, turn: str, ledger: Ledger) -> tuple[str, str | None]:
        """The turn as it is kept, and None or the reason why it is not."""
        if len(turn) > 16 * self.settings.max_characters:  # not worth reading
            return "", TOO_LONG
        if self._short_way:
            text = turn.replace(" ", "")
            if _PLAIN.fullmatch(text) and (len(text) == len(turn) or not _NOT_CJK.search(text) or _is_spaced(turn)):
                if self._repeats is not None:
                    before, text = text, self._repeats(text)
                    if text != before:
                        ledger.changed[_REPEATS] += 1
                        ledger.show(_REPEATS, before, text)
                return text, self._reason(text, self._plain_filters)
        text = self._normalised(turn, ledger)
        return text, self._reason(text, self._filters)

    def _normalised(self, turn: str, ledger: Ledger) -> str:
        changed: dict[str, tuple[str, str]] = {}
        text = self._apply(self._spaced, turn, changed)
        text = _LOOSE_SPACE.sub("", text) if _is_spaced(turn) else text
        before, text = None, clean_turn(text)
        while text != before:
            before, text = text, clean_turn(self._apply(self._normalisers, text, changed))
        for name, (was, became) in changed.items():
            ledger.changed[name] += 1
            ledger.show(name, was, became)
        return text

    @staticmethod
    def _apply(rules: Iterable, text: str, changed: dict[str, tuple[str, str]]) -> str:
        for name, rule in rules:
            after = rule(text)
            if after != text:
                changed.setdefault(name, (text, after))
                text = after
        return text

    def _reason(self, text: str, filters: Iterable) -> str | None:
        if not text:
            return NOTHING_LEFT
        if len(text) > self.settings.max_characters:
            return TOO_LONG
        if self._words is not None and _has_word(self._words, text):
            return BLOCKED
        for name, meets in filters:
            if meets(text):
                return name
        return None


def _is_spaced(text: str) -> bool:
    """Whether there is a space between every two characters, as in LCCC, so that spaces say nothing."""
    return _SPACED_PAIR.search(text) is not None and _HAN_PAIR.search(text) is None


def _read_words(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"The word list {path} cannot be read ({first_line(error)}); give a file in UTF-8.") from None
    words = [line.lower() for line in lines if line and not line.startswith("#")]
    if not words:
        raise FileError(f"{path} holds no word; write one a line, or skip the rule {BLOCKED}.")
    return words


def _automaton(words: Iterable[str]) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for word in words:
        automaton.add_word(word, word)
    automaton.make_automaton()
    return automaton


def _has_word(automaton: ahocorasick.Automaton, text: str) -> bool:
    """Whether a word of the list is in the text; one that begins or ends with a letter or digit only as a whole word."""
    text = text.lower()
    for end, word in automaton.iter(text):
        start = end + 1 - len(word)
        if not (_goes_on(text, start - 1, start) or _goes_on(text, end, end + 1)):
            return True
    return False


def _goes_on(text: str, left: int, right: int) -> bool:
    """Whether the characters at two neighbouring places belong to one English word."""
    return left >= 0 and right < len(text) and all(text[at].isascii() and text[at].isalnum() for at in (left, right))

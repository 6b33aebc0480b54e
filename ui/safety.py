"""What is kept out of a chat, and what is said when somebody may be in danger; all words live in files of the operator.

A folder with crisis.txt, crisis_reply.txt, words_in.txt, words_out.txt and settings.yaml (`safety_files/` is the one that
comes along; `xianliao-serve --safety DIR` takes another). Lists are found in one pass (Aho and Corasick 1975), letters in
both cases, and spaces and punctuation between the characters of a Chinese word do not hide it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ahocorasick
import yaml

from chatbot.errors import XianliaoError, first_line

FOLDER = Path(__file__).with_name("safety_files")
Kind = Literal["crisis", "refused"]
_BETWEEN = re.compile(r"(?<=[\u3400-\u9fff])[^\w]+(?=[\u3400-\u9fff])")


class SafetyError(XianliaoError):
    """Files that cannot be used."""


@dataclass(frozen=True)
class Fixed:
    """A reply that no model gave.

    Attributes:
        kind: Why.
        text: What is said.
    """

    kind: Kind
    text: str


class Phrases:
    """A list of phrases; those that begin with `!` are harmless, and a phrase inside one does not count."""

    def __init__(self, lines: Sequence[str]):
        self.words = [line for line in lines if not line.startswith("!")]
        self._automaton = ahocorasick.Automaton()
        for line in lines:
            word = line.removeprefix("!").lower()
            self._automaton.add_word(word, (len(word), line.startswith("!")))
        if lines:
            self._automaton.make_automaton()

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where phrases stand, (start, end), harmless ones left out."""
        if not len(self._automaton):
            return []
        found = [
            (end + 1 - size, end + 1, harmless)
            for end, (size, harmless) in self._automaton.iter(_same_length_lower(text))
        ]
        covers = [(start, end) for start, end, harmless in found if harmless]
        return [
            (start, end)
            for start, end, harmless in found
            if not harmless and not any(a <= start and end <= b for a, b in covers)
        ]


class Safety:
    """The rules of a folder.

    Attributes:
        banned_words: For `ReplySettings`: what no reply says.
    """

    def __init__(self, crisis: Phrases, crisis_reply: str, words_in: Phrases, words_out: Sequence[str], settings: dict):
        self.crisis, self.crisis_reply, self.words_in = crisis, crisis_reply, words_in
        self.banned_words = tuple(words_out)
        self.mode, self.refusal = settings["words_in"], settings["refusal"]

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Safety:
        """The files of a folder; None takes those that come along.

        Raises:
            SafetyError: A file is missing or cannot be used.
        """
        folder = FOLDER if folder is None else Path(folder)
        try:
            texts = {name: (folder / name).read_text(encoding="utf-8-sig") for name in NAMES}
            settings = yaml.safe_load(texts["settings.yaml"])
            if isinstance(settings, dict) and settings.get("words_in") is False:  # what YAML makes of off
                settings["words_in"] = "off"
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise SafetyError(f"The safety files in {folder} cannot be read ({first_line(error)}).") from None
        if not isinstance(settings, dict) or settings.get("words_in") not in MODES or not settings.get("refusal"):
            raise SafetyError(f"{folder / 'settings.yaml'} needs words_in ({', '.join(MODES)}) and a refusal.")
        lists = {name: _lines(texts[name]) for name in NAMES if name.endswith(".txt")}
        reply = texts["crisis_reply.txt"].strip()
        if not reply or not lists["crisis.txt"]:
            raise SafetyError(f"{folder} needs phrases in crisis.txt and a text in crisis_reply.txt.")
        parts = (Phrases(lists["crisis.txt"]), reply, Phrases(lists["words_in.txt"]), lists["words_out.txt"])
        return cls(*parts, {name: str(value) for name, value in settings.items()})

    def answer(self, message: str) -> Fixed | None:
        """What to say instead of a reply of the model, or None where the model may answer."""
        for text in (message, _BETWEEN.sub("", message)):
            if self.crisis.find(text):
                return Fixed("crisis", self.crisis_reply)
        if self.mode == "refuse" and (self.words_in.find(message) or self.words_in.find(_BETWEEN.sub("", message))):
            return Fixed("refused", self.refusal)
        return None

    def prompt(self, turns: Sequence[str]) -> list[str]:
        """The turns as the model sees them, the person's first: in hers words of words_in.txt are replaced, where
        settings.yaml says so.
        """
        replaces = self.mode == "replace"
        return [self._cleaned(turn) if replaces and place % 2 == 0 else turn for place, turn in enumerate(turns)]

    def _cleaned(self, message: str) -> str:
        """Without the words, also where they are spread out by spaces and punctuation."""
        hidden = {place for gap in _BETWEEN.finditer(message) for place in range(*gap.span())}
        places = [place for place in range(len(message)) if place not in hidden]
        characters = list(message)
        found = [place for start, end in self.words_in.find(message) for place in range(start, end)]
        joined = "".join(message[place] for place in places)
        found += [places[at] for start, end in self.words_in.find(joined) for at in range(start, end)]
        for place in found:
            characters[place] = "＊"
        return "".join(characters)


NAMES = ("crisis.txt", "crisis_reply.txt", "words_in.txt", "words_out.txt", "settings.yaml")
MODES = ("refuse", "replace", "off")


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and line != "!"]


def _same_length_lower(text: str) -> str:
    """Lower case, character by character, so that places stay what they were."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)

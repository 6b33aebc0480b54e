"""Rules for messages that get a fixed reply instead of a generated one; all texts are in files that operators can edit.

A message that mentions suicide or self-harm gets a fixed reply with the help line. From then on every reply is fixed,
until the talk has clearly moved on (the crisis state, see `Safety.answer`). The answer depends on the history alone, so
page, API, terminal and Python agree, and no state is stored.

A folder contains crisis.txt, crisis_reply.txt, words_in.txt and settings.yaml, and optionally care.yaml and
words_out.txt. `files/` is the folder of the package; its care.yaml is used for a folder without that file. Without
words_out.txt no words are banned. need.npz, if a folder has it, is a
classifier that finds sentences in which no phrase occurs (`chatbot.safety.classifier`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import yaml

from chatbot.errors import first_line
from chatbot.safety.care import Care, Fixed
from chatbot.safety.characters import other_reading
from chatbot.safety.classifier import LONG_LETTERS, NeedClassifier
from chatbot.safety.folding import NONE, SENTENCE, Folded, fold, fold_character
from chatbot.safety.phrases import Phrases, SafetyError
from chatbot.safety.words import lost_exceptions
from chatbot.text.word_lists import parse_word_list
from chatbot.text.yaml_files import read_yaml

FOLDER = Path(__file__).with_name("files")
OFF, DEFAULT = "off", "default"
NEEDED = ("crisis.txt", "crisis_reply.txt", "words_in.txt", "settings.yaml")
CLASSIFIER = "need.npz"
MODES = ("refuse", "replace", "off")
REMEMBERED_MESSAGES = 4096
JOINED_MESSAGES, JOINED_CHARACTERS = 3, 20
"""A person's last messages, up to this number and each of at most this many characters, are also checked as one text
(我想自, then 杀)."""
SPLITS = ((1, 0), (2, 1, 0), (2, 0), (3, 2, 0), (3, 1, 0))
"""Which of the last messages are joined, counted from the last one; in the later ones another message is between them."""
JOINED_TURNS = 2 * max(map(max, SPLITS)) + 1
QUESTION_CHARACTERS = 40
"""A question of the bot is checked with the answer to it by its last characters, up to this number."""
ANSWERED, AFTER_NEED = "答", "先前求助"
"""Words of crisis.txt that stand between a question of the bot and the answer, and after a message that follows a crisis
message somewhere in the conversation."""
TAIL_LETTERS = 2
"""A phrase that is split over several messages counts if its clause ends at most this many letters after it; otherwise
the classifier judges the joined text."""
SHORT_MESSAGE = 1000
"""For messages of this many characters or more, the key of the cached kind is a hash of the text, not the text."""


class Safety:
    """The rules of a folder.

    Attributes:
        crisis: Phrases that mention suicide or self-harm.
        certain: Phrases that begin with `+` in crisis.txt: a message with one of them is by a person in crisis even if
            the classifier finds the message harmless.
        classifier: Finds messages by people in crisis that contain no crisis phrase; None relies on the phrases alone.
        banned_words: Words that no reply contains, in addition to those of the checkpoint's settings; from
            words_out.txt.
    """

    def __init__(
        self,
        crisis: Sequence[str],
        crisis_reply: str,
        care: Care,
        words_in: Phrases,
        settings: Mapping[str, str],
        banned_words: Sequence[str] = (),
        classifier: NeedClassifier | None = None,
    ):
        self.classifier = classifier
        harmless = [line for line in crisis if line.startswith("!")]
        certain = [line.removeprefix("+") for line in crisis if line.startswith("+")]
        self.crisis = Phrases([line.removeprefix("+") for line in crisis], spares_titles=True)
        self.certain = Phrases([*certain, *harmless], spares_titles=True)
        self.crisis_reply, self.care, self.words_in = crisis_reply, care, words_in
        self.mode, self.refusal = settings["words_in"], settings["refusal"]
        self.banned_words = tuple(banned_words)
        self._kind_of_short = lru_cache(REMEMBERED_MESSAGES)(self._kind_of)
        self._is_short_split = lru_cache(REMEMBERED_MESSAGES)(self._is_split)
        self._is_short_confirmation = lru_cache(REMEMBERED_MESSAGES)(self._is_confirmation)
        self._kinds_of_long: dict[bytes, str] = {}

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Safety:
        """Read the files of a folder; None means those of the package.

        Raises:
            SafetyError: A file is missing or cannot be used.
        """
        folder = FOLDER if folder is None else Path(folder)
        try:
            texts = {name: (folder / name).read_text(encoding="utf-8-sig") for name in NEEDED}
            care_file = folder / "care.yaml" if (folder / "care.yaml").is_file() else FOLDER / "care.yaml"
            texts["care.yaml"] = care_file.read_text(encoding="utf-8-sig")
            banned_file = folder / "words_out.txt"
            texts["words_out.txt"] = banned_file.read_text(encoding="utf-8-sig") if banned_file.is_file() else ""
            settings = read_yaml(texts["settings.yaml"])
            if isinstance(settings, dict) and settings.get("words_in") is False:  # YAML reads off as false
                settings["words_in"] = "off"
            care = Care.read(texts["care.yaml"])
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SafetyError(f"The safety files in {folder} cannot be read ({first_line(error)}).") from None
        except SafetyError as error:
            raise SafetyError(f"The safety files in {folder} cannot be used: {error}") from None
        if not isinstance(settings, dict) or settings.get("words_in") not in MODES or not settings.get("refusal"):
            raise SafetyError(f"{folder / 'settings.yaml'} needs words_in ({', '.join(MODES)}) and a refusal.")
        crisis, words_in = _entries(texts["crisis.txt"]), _entries(texts["words_in.txt"])
        reply = texts["crisis_reply.txt"].strip()
        if not reply or not crisis:
            raise SafetyError(f"{folder} needs phrases in crisis.txt and a text in crisis_reply.txt for its safety.")
        settings = {name: str(value) for name, value in settings.items()}
        banned = _entries(texts["words_out.txt"])
        if lost := lost_exceptions(banned):
            raise SafetyError(
                f"{folder / 'words_out.txt'}: the exception {lost[0]!r} does not end with a word of the list."
            )
        weights = folder / CLASSIFIER
        try:
            classifier = NeedClassifier.load(weights) if weights.is_file() else None
        except (OSError, ValueError, KeyError) as error:
            raise SafetyError(f"{weights} cannot be read ({first_line(error)}).") from None
        return cls(crisis, reply, care, Phrases(words_in), settings, banned, classifier)

    def answer(self, turns: Sequence[str]) -> Fixed | None:
        """Return the fixed reply to a history, or None if the model may answer.

        The last turn and every second turn before it are the person's. The crisis state begins with a message that
        has a crisis phrase. It ends when the person says that it is over (kind `better` of care.yaml), or after
        `Care.ordinary_messages` consecutive ordinary messages: messages of some length without a word about means,
        leaving or distress. Messages that are too short to judge change nothing. All replies in the crisis state, and
        the reply to the message that ends it, are fixed. A message that asks for means brings an ended state back.

        Args:
            turns: The history, oldest turn first.
        """
        kinds = self._kinds_since_talk_was_ordinary(turns)
        reply, needing, ordinary, number, crises = None, False, 0, 0, 0
        has_needed = "asking" in kinds and self._has_crisis(turns[: -2 * len(kinds)])
        for kind in kinds:
            has_needed = has_needed or kind == "crisis"
            if not needing and (kind == "crisis" or (kind == "asking" and has_needed)):
                needing, number, crises = True, 0, 0
            if not needing:
                reply = None
                continue
            number += 1
            crises += kind == "crisis"
            if kind == "crisis" and crises == 1:
                reply = Fixed("crisis", self.crisis_reply)
            elif kind == "crisis":
                reply = Fixed("crisis", self._turn("again", number))
            else:
                reply = Fixed("care", self._turn("means" if kind == "asking" else kind, number))
            ordinary = ordinary + 1 if kind == "ordinary" else ordinary if kind == "short" else 0
            if kind == "better" or ordinary == self.care.ordinary_messages:
                needing, ordinary = False, 0
        if reply is None and self.mode == "refuse" and turns[-1] in self.words_in:
            return Fixed("refused", self.refusal)
        return reply

    def _turn(self, kind: str, number: int) -> str:
        """Return the reply to a message of this kind; `number` counts the messages of the crisis state from 1."""
        replies = self.care.replies[kind]
        return replies[number % len(replies)]

    def _kinds_since_talk_was_ordinary(self, turns: Sequence[str]) -> list[str]:
        """Return the kinds of the person's last messages, from a point where the talk was not in the crisis state."""
        kinds, ordinary = [self._kind_after(turns)], 0
        for end in range(len(turns) - 2, 0, -2):
            kind = self._kind_after(turns[max(0, end - JOINED_TURNS) : end])
            ordinary = ordinary + 1 if kind == "ordinary" else ordinary if kind == "short" else 0
            if kind == "better" or ordinary == self.care.ordinary_messages:
                break
            kinds.append(kind)
        return kinds[::-1]

    def _kind_after(self, turns: Sequence[str]) -> str:
        """Return the kind of the last message: crisis if it completes what earlier turns began.

        That is a phrase that earlier messages began, or a question of the bot about suicide that the person affirms.
        """
        kind, messages = self._kind(turns[-1]), turns[: -JOINED_TURNS - 1 : -2]
        if kind == "crisis" or len(messages[0]) > JOINED_CHARACTERS:
            return kind
        if len(turns) > 1 and self._is_short_confirmation(turns[-2][-QUESTION_CHARACTERS:], messages[0]):
            return "crisis"
        short = next((at for at, message in enumerate(messages) if len(message) > JOINED_CHARACTERS), len(messages))
        for split in SPLITS:
            has_gap = len(split) <= split[0]
            if split[0] < short and not (has_gap and len(messages[0]) == 1):
                kind = "crisis" if self._is_short_split(tuple(messages[at] for at in split)) else kind
        return kind

    def _is_confirmation(self, question: str, message: str) -> bool:
        """Whether the bot asked about suicide and the person says yes, by phrases with `ANSWERED` that begin with `+`."""
        clauses = "".join("，" if fold_character(character)[1] == SENTENCE else character for character in question)
        text = f"{clauses} {ANSWERED} {message}"
        last = len(text) - len(message)
        return any(places[0] < last <= places[-1] for places in self.certain.places(text))

    def _has_crisis(self, turns: Sequence[str]) -> bool:
        """Whether one of the person's messages is a crisis message; the last turn is the person's."""
        return any(
            self._kind_after(turns[max(0, end - JOINED_TURNS) : end]) == "crisis" for end in range(len(turns), 0, -2)
        )

    def _is_split(self, messages: tuple[str, ...]) -> bool:
        """Whether the last message completes a phrase that the earlier messages began."""
        text = " ".join(messages)
        folded, last = fold(text), len(text) - len(messages[-1])
        phrases = [places for places in self.crisis.places(text, folded) if places[0] < last <= places[-1]]
        ends = [bisect_right(folded.places, places[-1]) for places in phrases]
        if any(max(folded.breaks[end : end + TAIL_LETTERS + 1]) > NONE for end in ends):
            return self._counts(text, folded, phrases)
        return bool(phrases) and self._counts(text, folded, [])

    def _kind(self, message: str) -> str:
        if len(message) < SHORT_MESSAGE:
            return self._kind_of_short(message)
        key = sha256(message.encode("utf-8", "surrogatepass")).digest()
        if (kind := self._kinds_of_long.get(key)) is None:
            kind = self._kinds_of_long[key] = self._kind_of(message)
            for oldest in list(self._kinds_of_long)[: len(self._kinds_of_long) - REMEMBERED_MESSAGES]:
                self._kinds_of_long.pop(oldest, None)
        return kind

    def _kind_of(self, message: str) -> str:
        """Return the kind of a message. All of it is read, however long it is, in time linear in its length.

        The kind of a message that asks for means is `asking`: it counts after a crisis message, however long ago.
        """
        folded, other = fold(message), other_reading(message)
        if self.is_crisis(message, folded) or (other is not None and self._has_phrase(other)):
            return "crisis"
        kind = self.care.kind_of(message, folded)
        if kind == "means" and self.certain.places(f"{message} {AFTER_NEED}", is_one_enough=True):
            return "asking"
        return kind

    def _has_phrase(self, message: str) -> bool:
        """Whether a message mentions suicide or self-harm in words of the list."""
        folded = fold(message)
        phrases = self._phrases(message, folded)
        return bool(phrases) and self._counts(message, folded, phrases)

    def _phrases(self, message: str, folded: Folded) -> list[tuple[int, ...]]:
        """Return the crisis phrases of a message; only one if the message is too long for the classifier's veto."""
        return self.crisis.places(message, folded, is_one_enough=len(folded.text) > LONG_LETTERS)

    def is_crisis(self, message: str, folded: Folded | None = None) -> bool:
        """Whether a message mentions suicide or self-harm.

        Args:
            message: The message.
            folded: `fold(message)`, if the caller has it already.
        """
        folded = fold(message) if folded is None else folded
        return self._counts(message, folded, self._phrases(message, folded))

    def _counts(self, message: str, folded: Folded, phrases: Sequence[Sequence[int]]) -> bool:
        """Whether a message with these phrases, or with none, is by a person in crisis."""
        if self.classifier is None or (phrases and self.certain.places(message, folded, is_one_enough=True)):
            return bool(phrases)
        if not self.classifier.finds(folded, phrases):
            return False
        rest = folded if phrases else self.crisis.without_innocent(folded)
        return rest is folded or self.classifier.finds(rest, [])

    def prompt(self, turns: Sequence[str]) -> list[str]:
        """Return the turns as the model sees them.

        In mode `replace` of settings.yaml, words of words_in.txt in the person's turns become ＊.
        """
        if self.mode != "replace":
            return list(turns)
        persons = (len(turns) - 1) % 2
        return [self._cleaned(turn) if index % 2 == persons else turn for index, turn in enumerate(turns)]

    def _cleaned(self, message: str) -> str:
        characters = list(message)
        for index in {index for places in self.words_in.places(message) for index in places}:
            characters[index] = "＊"
        return "".join(characters)


def _entries(text: str) -> list[str]:
    """Return the entries of a word list; a `!` without a word is not an entry."""
    return [entry for entry in parse_word_list(text) if entry != "!"]


@lru_cache(1)
def default_safety() -> Safety:
    """Return the rules of the package."""
    return Safety.load()


def named_safety(name: str | Path | None) -> Safety | None:
    """Return the rules that a command line argument selects: `default`, `off` (None), or a folder.

    Raises:
        SafetyError: The folder cannot be used.
    """
    if name in (None, OFF):
        return None
    return default_safety() if name == DEFAULT else Safety.load(name)

"""Fixed replies, and the replies to a person in crisis by the kind of the message (care.yaml)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chatbot.safety.folding import Folded
from chatbot.safety.phrases import Phrases, SafetyError
from chatbot.text.yaml_files import read_yaml

ASKING = ("means", "leaving", "distress", "better")
"""Kinds of messages in the crisis state that are recognised by phrases, in the order in which they are tried."""
KINDS = ("again", *ASKING, "short", "ordinary")

Kind = Literal["crisis", "care", "refused"]


@dataclass(frozen=True)
class Fixed:
    """A reply with a fixed text.

    Attributes:
        kind: `crisis` to a message that mentions suicide or self-harm, `care` to the messages after it, `refused` to a
            message with a word of words_in.txt.
        text: The reply.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Care:
    """Replies to a person in crisis, and what ends the crisis state; see care.yaml.

    Attributes:
        replies: Texts by kind of message.
        phrases: Phrases by kind of message.
        ordinary_messages: Number of consecutive ordinary messages that end the crisis state.
        ordinary_letters: Minimum number of letters of an ordinary message.
    """

    replies: Mapping[str, Sequence[str]]
    phrases: Mapping[str, Phrases]
    ordinary_messages: int
    ordinary_letters: int

    @classmethod
    def read(cls, text: str) -> Care:
        """Return the content of care.yaml.

        Raises:
            SafetyError: It cannot be used.
        """
        content = read_yaml(text)
        if not isinstance(content, dict) or sorted(content) != sorted(
            (*KINDS, "ordinary_messages", "ordinary_letters")
        ):
            raise SafetyError(f"care.yaml needs ordinary_messages, ordinary_letters and {', '.join(KINDS)}.")
        for kind in KINDS:
            part = content[kind]
            names = ("phrases", "replies") if kind in ASKING else ("replies",)
            if not isinstance(part, dict) or set(part) != set(names):
                raise SafetyError(f"care.yaml: {kind} needs {' and '.join(names)}.")
            for name in names:
                if not isinstance(part[name], list) or not all(isinstance(text, str) and text for text in part[name]):
                    raise SafetyError(f"care.yaml: {name} of {kind} must be a list of texts.")
            if len(set(part["replies"])) < 2:
                raise SafetyError(f"care.yaml: {kind} needs at least two replies, so that they can take turns.")
        counts = [content["ordinary_messages"], content["ordinary_letters"]]
        if not all(type(count) is int and count >= 1 for count in counts):
            raise SafetyError("care.yaml: ordinary_messages and ordinary_letters must be whole numbers of at least 1.")
        replies = {kind: tuple(content[kind]["replies"]) for kind in KINDS}
        return cls(replies, {kind: Phrases(content[kind]["phrases"]) for kind in ASKING}, *counts)

    def kind_of(self, message: str, folded: Folded) -> str:
        """Classify a message that contains no crisis phrase.

        Args:
            message: What the person wrote.
            folded: `fold(message)`: its letters and digits in one spelling, without separators.
        """
        for kind in ASKING:
            if self.phrases[kind].places(message, folded, is_one_enough=True):
                return kind
        return "ordinary" if len(folded.text) >= self.ordinary_letters else "short"

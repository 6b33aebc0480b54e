"""Layouts: how the turns of a dialogue become token ids, speaker ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chatbot.text.dialogue import DialogueError, Prompt, Sample, fit, speaker_of

IGNORED_LABEL = -100
"""Label of a position that carries no loss (the value that torch's cross entropy ignores)."""


@dataclass(frozen=True)
class TurnMarks:
    """Ids that a chat template writes around the contents of turns; see `chatbot.text.chat_template`.

    Attributes:
        opening: Before the first content, which is the person's.
        to_bot: From the end of a person's content to the start of the bot's.
        to_person: From the end of the bot's content to the start of the person's.
    """

    opening: tuple[int, ...]
    to_bot: tuple[int, ...]
    to_person: tuple[int, ...]


class SpecialIds(Protocol):
    """What the layouts need of a tokenizer; `marks` is None where it has no chat template."""

    cls_id: int
    sep_id: int
    marks: TurnMarks | None


class DialogptLayout:
    """The layout of the module docstring.

    Attributes:
        opening_tokens: Tokens before the first turn of a sample.
        turn_tokens: Tokens that a turn takes beside its own.
    """

    name = "dialogpt"
    opening_tokens = 1
    turn_tokens = 1

    def __init__(self, special: SpecialIds):
        self.cls_id = special.cls_id
        self.end_of_turn_id = special.sep_id

    def lay_out(self, turns: Sequence[Sequence[int]], first_turn: int = 0) -> Sample:
        """Lays out a whole dialogue for training or scoring.

        Args:
            turns: Token ids of each turn, without special tokens.
            first_turn: Absolute index of `turns[0]` in its dialogue.
        """
        input_ids: list[int] = []
        speaker_ids: list[int] = []
        labels: list[int] = []
        for ids, speaker in self._pieces(turns, first_turn):
            labels += [IGNORED_LABEL, *ids[1:]] if not input_ids else ids
            input_ids += ids
            speaker_ids += [speaker] * len(ids)
        return Sample(input_ids, speaker_ids, labels)

    def prompt(self, turns: Sequence[Sequence[int]], context_tokens: int) -> Prompt:
        """Lays out a history, fitted to `context_tokens`, for the reply that follows its last turn.

        Raises:
            DialogueError: There is no turn to reply to.
        """
        if not turns:
            raise DialogueError("There is nothing to reply to: give at least one turn.")
        first = fit([len(ids) for ids in turns], context_tokens)
        pieces = tuple((tuple(ids), speaker) for ids, speaker in self._pieces(turns[first:], first))
        return Prompt(pieces, speaker_of(len(turns)), first)

    def _pieces(self, turns: Sequence[Sequence[int]], first_turn: int) -> list[tuple[list[int], int]]:
        pieces = [([*ids, self.end_of_turn_id], speaker_of(first_turn + i)) for i, ids in enumerate(turns)]
        if pieces:
            pieces[0][0].insert(0, self.cls_id)
        return pieces


class ChatTemplateLayout:
    """The layout of a chat model, as its template writes it: speaker 0 is the user, speaker 1 the assistant.

    Every content and the id that closes it carry loss, the other ids of the template do not. Where the first turn is the
    bot's, an empty turn of the person comes before it, because many templates know no other beginning.

    Attributes:
        opening_tokens: The most tokens before the first turn of a sample.
        turn_tokens: The most tokens that a turn takes beside its own.
    """

    name = "chat_template"

    def __init__(self, special: SpecialIds):
        if special.marks is None:
            raise DialogueError("The tokenizer has no chat template; give the folder of a chat model.")
        self._opening, self._after = special.marks.opening, (special.marks.to_bot, special.marks.to_person)
        self.end_of_turn_id = special.marks.to_person[0]
        self.opening_tokens = len(self._opening) + len(special.marks.to_bot)
        self.turn_tokens = max(map(len, self._after))

    def lay_out(self, turns: Sequence[Sequence[int]], first_turn: int = 0) -> Sample:
        """Lays out a whole dialogue for training or scoring; see `DialogptLayout.lay_out`."""
        sample = Sample([], [], [])
        for before, content, after, speaker in self._pieces(turns, first_turn):
            ids = [*before, *content, *after]
            sample.input_ids.extend(ids)
            sample.speaker_ids.extend([speaker] * len(ids))
            unscored = [IGNORED_LABEL] * (len(after) - 1)
            sample.labels.extend([*[IGNORED_LABEL] * len(before), *content, after[0], *unscored])
        return sample

    def prompt(self, turns: Sequence[Sequence[int]], context_tokens: int) -> Prompt:
        """Lays out a history, fitted to `context_tokens`, for a reply of the bot; roles alternate backwards from it.

        Raises:
            DialogueError: There is no turn to reply to.
        """
        if not turns:
            raise DialogueError("There is nothing to reply to: give at least one turn.")
        first = fit([len(ids) + self.turn_tokens - 1 for ids in turns], context_tokens, self.opening_tokens)
        pieces = self._pieces(turns[first:], first + len(turns) + 1)
        return Prompt(tuple(((*before, *ids, *after), speaker) for before, ids, after, speaker in pieces), 1, first)

    def _pieces(self, turns: Sequence[Sequence[int]], first_turn: int):
        """Ids before a turn's content, the content, ids after it, and its speaker."""
        before = self._opening + self._after[0] * speaker_of(first_turn)
        for index, ids in enumerate(turns, first_turn):
            yield before, ids, self._after[speaker_of(index)], speaker_of(index)
            before = ()


Layout = DialogptLayout | ChatTemplateLayout
LAYOUTS = {layout.name: layout for layout in (DialogptLayout, ChatTemplateLayout)}
"""Layouts by the name that a checkpoint's config.json gives."""

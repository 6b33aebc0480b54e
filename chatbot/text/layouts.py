"""Layouts: how the turns of a dialogue become token ids, speaker ids and labels; see `chatbot.text.dialogue`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from chatbot.text.dialogue import DialogueError, Prompt, Sample, fit, speaker_of

IGNORED_LABEL = -100
"""Label of a token without loss (the value that torch's cross entropy ignores)."""


@dataclass(frozen=True)
class TurnMarks:
    """Ids that a chat template writes around the contents of turns; see `chatbot.text.chat_template`.

    Attributes:
        opening: Ids before the first content, which is the person's.
        to_bot: Ids from the end of a person's content to the start of the bot's.
        to_person: Ids from the end of the bot's content to the start of the person's.
        asks: Ids after `to_bot` that ask for a reply without thinking, and with thinking; they are not in the history.
        has_switch: Whether the template reads `enable_thinking`.
        system: Ids before a system prompt, and from its end to the start of the first content; both replace `opening`.
    """

    opening: tuple[int, ...]
    to_bot: tuple[int, ...]
    to_person: tuple[int, ...]
    asks: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    has_switch: bool = False
    system: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


class SpecialIds(Protocol):
    """Special ids of a tokenizer that the layouts need.

    Attributes:
        cls_id: Id that opens a sample.
        sep_id: Id that ends a turn.
        marks: Ids around turns, or None if the tokenizer has no chat template.
    """

    cls_id: int
    sep_id: int
    marks: TurnMarks | None


class DialogptLayout:
    """Layout `[CLS] u0 [SEP] u1 [SEP] …` of `chatbot.text.dialogue`.

    Attributes:
        opening_tokens: Number of tokens before the first turn of a sample.
        turn_tokens: Number of tokens that a turn takes besides its content.
        end_of_turn_id: Id that ends a turn.
        end_of_reply: Ids that follow the content of a reply in the history.
        asks: None: this layout has no thinking block.
        takes_system: False: this layout has no system prompt.
    """

    name = "dialogpt"
    takes_system = False
    opening_tokens = 1
    turn_tokens = 1

    def __init__(self, special: SpecialIds):
        self.cls_id = special.cls_id
        self.end_of_turn_id = special.sep_id
        self.end_of_reply = (special.sep_id,)
        self.asks: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def lay_out(self, turns: Sequence[Sequence[int]], first_turn: int = 0) -> Sample:
        """Return a whole dialogue as model input, for training or scoring.

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

    def system_room(self, context_tokens: int, message_tokens: int) -> int:
        """Return 0, the length of the longest system prompt."""
        return 0

    def prompt(self, turns: Sequence[Sequence[int]], context_tokens: int, system: Sequence[int] = ()) -> Prompt:
        """Return a history as model input, for the reply that follows its last turn.

        Args:
            turns: Token ids of each turn, without special tokens.
            context_tokens: Longest history, in tokens; older turns are dropped, see `fit`.
            system: Empty, because this layout has no system prompt.

        Raises:
            DialogueError: The history is empty, or `system` is not.
        """
        _check_not_empty(turns)
        if system:
            raise DialogueError("This model takes no system prompt. Begin the history with example turns instead.")
        first = fit([len(ids) for ids in turns], context_tokens)
        pieces = tuple((tuple(ids), speaker) for ids, speaker in self._pieces(turns[first:], first))
        return Prompt(pieces, speaker_of(len(turns)), first)

    def _pieces(self, turns: Sequence[Sequence[int]], first_turn: int) -> list[tuple[list[int], int]]:
        pieces = [([*ids, self.end_of_turn_id], speaker_of(first_turn + i)) for i, ids in enumerate(turns)]
        if pieces:
            pieces[0][0].insert(0, self.cls_id)
        return pieces


class ChatTemplateLayout:
    """Layout of a chat model, as its template writes it: speaker 0 is the user, speaker 1 the assistant.

    The content of every turn and the id that closes it carry loss; the other ids of the template do not. A sample that
    begins with a turn of the bot gets an empty turn of the person before it, because many templates require the user to
    begin.

    Attributes:
        opening_tokens: Largest number of tokens before the first turn of a sample.
        turn_tokens: Largest number of tokens that a turn takes besides its content.
        end_of_turn_id: Id that ends a turn of the bot.
        end_of_reply: Ids that follow the content of a reply in the history; the first one is `end_of_turn_id`.
        asks: See `TurnMarks`.
        takes_system: True; if the template has no system message, the system prompt begins the first message.
    """

    name = "chat_template"
    takes_system = True

    def __init__(self, special: SpecialIds):
        if special.marks is None:
            raise DialogueError("The tokenizer has no chat template. Give the folder of a chat model.")
        self._opening, self._after = special.marks.opening, (special.marks.to_bot, special.marks.to_person)
        self._system = special.marks.system
        self.end_of_turn_id = special.marks.to_person[0]
        self.end_of_reply = special.marks.to_person
        self.asks = special.marks.asks
        self.opening_tokens = len(self._opening) + len(special.marks.to_bot) + max(map(len, self.asks))
        self.turn_tokens = max(map(len, self._after))

    def lay_out(self, turns: Sequence[Sequence[int]], first_turn: int = 0) -> Sample:
        """Return a whole dialogue as model input, for training or scoring; see `DialogptLayout.lay_out`."""
        sample = Sample([], [], [])
        for before, content, after, speaker in self._pieces(turns, first_turn, self._opening):
            ids = [*before, *content, *after]
            sample.input_ids.extend(ids)
            sample.speaker_ids.extend([speaker] * len(ids))
            unscored = [IGNORED_LABEL] * (len(after) - 1)
            sample.labels.extend([*[IGNORED_LABEL] * len(before), *content, after[0], *unscored])
        return sample

    def system_room(self, context_tokens: int, message_tokens: int) -> int:
        """Return the length of the longest system prompt that leaves room for a message of `message_tokens` tokens."""
        around = self.opening_tokens - len(self._opening) + sum(map(len, self._system)) + self.turn_tokens
        return max(0, context_tokens - message_tokens - around)

    def prompt(self, turns: Sequence[Sequence[int]], context_tokens: int, system: Sequence[int] = ()) -> Prompt:
        """Return a history as model input, for a reply of the bot; roles alternate backwards from the reply.

        Args:
            turns: Token ids of each turn, without special tokens.
            context_tokens: Longest history with its system prompt, in tokens; older turns are dropped, see `fit`.
            system: Token ids of the system prompt, at most `system_room`; if empty, the template may write its default.

        Raises:
            DialogueError: The history is empty.
        """
        _check_not_empty(turns)
        opening = (*self._system[0], *system, *self._system[1]) if system else self._opening
        room = context_tokens - len(opening) + len(self._opening)
        first = fit([len(ids) + self.turn_tokens - 1 for ids in turns], room, self.opening_tokens)
        pieces = self._pieces(turns[first:], first + len(turns) + 1, opening)
        return Prompt(tuple(((*before, *ids, *after), speaker) for before, ids, after, speaker in pieces), 1, first)

    def _pieces(
        self, turns: Sequence[Sequence[int]], first_turn: int, opening: tuple[int, ...]
    ) -> Iterator[_TemplatePiece]:
        before = opening + self._after[0] * speaker_of(first_turn)
        for index, ids in enumerate(turns, first_turn):
            yield _TemplatePiece(before, ids, self._after[speaker_of(index)], speaker_of(index))
            before = ()


class _TemplatePiece(NamedTuple):
    """Ids before the content of a turn, the content, ids after it, and its speaker."""

    before: tuple[int, ...]
    content: Sequence[int]
    after: tuple[int, ...]
    speaker: int


def _check_not_empty(turns: Sequence[Sequence[int]]) -> None:
    if not turns:
        raise DialogueError("The history is empty: give at least one turn.")


Layout = DialogptLayout | ChatTemplateLayout
LAYOUTS = {layout.name: layout for layout in (DialogptLayout, ChatTemplateLayout)}
"""Layouts by the name in the config.json of a checkpoint."""

"""From a raw dialogue to clean turns, or the reason why it is dropped."""

from __future__ import annotations

from chatbot.dialogue import clean_turn

NOT_A_DIALOGUE = "not_a_list_of_strings"
EMPTY_TURN = "empty_turn"
ONE_TURN = "fewer_than_two_turns"
DUPLICATE = "duplicate"


def clean_dialogue(raw: object) -> tuple[list[str] | None, str | None]:
    """Turns trimmed and with their spaces joined, or None with the reason."""
    if not isinstance(raw, list) or not all(isinstance(turn, str) for turn in raw):
        return None, NOT_A_DIALOGUE
    turns = [clean_turn(turn) for turn in raw]
    if not all(turns):
        return None, EMPTY_TURN
    if len(turns) < 2:
        return None, ONE_TURN
    return turns, None

"""Preview of a prepared set: its first dialogues as a person reads them, or as the tokens that a model is trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from chatbot.language.translation import translate
from chatbot.text.layouts import IGNORED_LABEL, LAYOUTS, Layout
from chatbot.text.prepared_set import load_split
from chatbot.text.tokenizer import DialogueTokenizer

_SPEAKER_COLOURS = ("\033[36m", "\033[33m")
_NO_LOSS, _RESET = "\033[2m", "\033[0m"
_SPEAKERS = ("  person: ", "  bot: ")
"""Speakers 0 and 1; the turns of the second are those that `DIR:replies` learns."""


def preview(folder: str | Path, count: int, colour: bool | None = None, tokens: bool = False) -> str:
    """Return the first dialogues of the train split, one line per turn.

    Args:
        folder: The prepared set.
        count: Number of dialogues.
        colour: Whether to colour the turns by speaker; None does so if the output is a terminal.
        tokens: Whether to show every token, with `|` between tokens; those without loss are dimmed if there are colours.
    """
    colour = sys.stdout.isatty() if colour is None else colour
    tokenizer = DialogueTokenizer.load(folder)
    layout = LAYOUTS[tokenizer.layout](tokenizer)
    lines = []
    for number, turns in enumerate(load_split(folder, "train")[:count]["turns"], 1):
        size = len(layout.lay_out(turns).input_ids)
        lines.append(translate(f"dialogue {number}: {len(turns)} turns, {size} tokens"))
        lines += _token_lines(turns, tokenizer, layout, colour) if tokens else _text_lines(turns, tokenizer, colour)
    return "\n".join(lines)


def _text_lines(turns: Sequence[Sequence[int]], tokenizer: DialogueTokenizer, colour: bool) -> Iterator[str]:
    """Yield the turns as text, after their speakers."""
    for index, ids in enumerate(turns):
        text = tokenizer.decode_complete(ids).replace("\n", "⏎")
        speaker = index % 2
        shown = f"{_SPEAKER_COLOURS[speaker]}{text}{_RESET}" if colour else text
        yield translate(_SPEAKERS[speaker]) + shown


def _token_lines(
    turns: Sequence[Sequence[int]], tokenizer: DialogueTokenizer, layout: Layout, colour: bool
) -> Iterator[str]:
    """Yield the tokens of the dialogue as the model gets them, one line for each speaker in turn."""
    sample = layout.lay_out(turns)
    line, last_speaker = "", None
    for token, speaker, label in zip(sample.input_ids, sample.speaker_ids, sample.labels, strict=True):
        if speaker != last_speaker:
            if line:
                yield line.removesuffix("|")
            line, last_speaker = translate(_SPEAKERS[speaker]), speaker
        text = tokenizer.decode([token]) if token not in tokenizer.special_ids else tokenizer.tokens([token])[0]
        text = text.replace("\n", "⏎")  # chat templates write line ends
        style = _NO_LOSS if label == IGNORED_LABEL else _SPEAKER_COLOURS[speaker]
        line += f"{style}{text}{_RESET}|" if colour else f"{text}|"
    yield line.removesuffix("|")

"""Showing a person what the model is trained on: speakers, tokens, and which of them carry loss."""

from __future__ import annotations

import sys
from pathlib import Path

from chatbot.text.layouts import IGNORED_LABEL, LAYOUTS
from chatbot.text.prepared_set import load_split
from chatbot.text.tokenizer import DialogueTokenizer

_SPEAKER_COLOURS = ("\033[36m", "\033[33m")
_NO_LOSS, _RESET = "\033[2m", "\033[0m"


def preview(folder: str | Path, count: int, colour: bool | None = None) -> str:
    """The first `count` samples of a prepared set's train split, a line a turn.

    Tokens are parted by `|`; the colour is the speaker's, dim tokens carry no loss.
    """
    colour = sys.stdout.isatty() if colour is None else colour
    tokenizer = DialogueTokenizer.load(folder)
    layout = LAYOUTS[tokenizer.layout](tokenizer)
    lines = []
    for number, turns in enumerate(load_split(folder, "train")[:count]["turns"], 1):
        sample = layout.lay_out(turns)
        lines.append(f"sample {number}: {len(turns)} turns, {len(sample.input_ids)} tokens")
        before = None
        for token, speaker, label in zip(sample.input_ids, sample.speaker_ids, sample.labels, strict=True):
            if speaker != before:
                lines.append(f"  speaker {speaker}: ")
                before = speaker
            text = tokenizer.decode([token]) if token not in tokenizer.special_ids else tokenizer.tokens([token])[0]
            text = text.replace("\n", "⏎")  # of a chat template
            style = _NO_LOSS if label == IGNORED_LABEL else _SPEAKER_COLOURS[speaker]
            lines[-1] += f"{style}{text}{_RESET}|" if colour else f"{text}|"
    return "\n".join(line.removesuffix("|") for line in lines)

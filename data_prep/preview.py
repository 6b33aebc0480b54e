"""Preview of a prepared set: what the model is trained on, with speakers, tokens, and which tokens carry loss."""

from __future__ import annotations

import sys
from pathlib import Path

from chatbot.language.translation import translate
from chatbot.text.layouts import IGNORED_LABEL, LAYOUTS
from chatbot.text.prepared_set import load_split
from chatbot.text.tokenizer import DialogueTokenizer

_SPEAKER_COLOURS = ("\033[36m", "\033[33m")
_NO_LOSS, _RESET = "\033[2m", "\033[0m"


def preview(folder: str | Path, count: int, colour: bool | None = None) -> str:
    """Return the first samples of the train split, one line per turn, with `|` between tokens.

    Args:
        folder: The prepared set.
        count: Number of samples.
        colour: Whether to colour tokens by speaker and dim tokens without loss; None does so if the output is a
            terminal.
    """
    colour = sys.stdout.isatty() if colour is None else colour
    tokenizer = DialogueTokenizer.load(folder)
    layout = LAYOUTS[tokenizer.layout](tokenizer)
    lines = []
    for number, turns in enumerate(load_split(folder, "train")[:count]["turns"], 1):
        sample = layout.lay_out(turns)
        lines.append(translate(f"sample {number}: {len(turns)} turns, {len(sample.input_ids)} tokens"))
        last_speaker = None
        for token, speaker, label in zip(sample.input_ids, sample.speaker_ids, sample.labels, strict=True):
            if speaker != last_speaker:
                lines.append(translate(f"  speaker {speaker}: "))
                last_speaker = speaker
            text = tokenizer.decode([token]) if token not in tokenizer.special_ids else tokenizer.tokens([token])[0]
            text = text.replace("\n", "⏎")  # chat templates write line ends
            style = _NO_LOSS if label == IGNORED_LABEL else _SPEAKER_COLOURS[speaker]
            lines[-1] += f"{style}{text}{_RESET}|" if colour else f"{text}|"
    return "\n".join(line.removesuffix("|") for line in lines)

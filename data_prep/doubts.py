"""Warnings about the inputs of a build: files that gave no dialogue, files whose form was perhaps recognised wrongly."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from chatbot.errors import FileError
from data_prep.cleaning.ledger import Ledger
from data_prep.reading.formats import form_of
from data_prep.stages.assemble import Input

MAX_NAMED = 10
"""Maximum number of files that one kind of warning names; the table of the report lists all files."""


def check_dialogues_left(files: Sequence[Input], ledgers: Sequence[Ledger], form: str) -> None:
    """Raise FileError if no dialogue is left for the train split; the message says why."""
    total = Ledger()
    for file, ledger in zip(files, ledgers, strict=True):
        if file.split == "train":
            total.add(ledger)
    if total.pieces:
        return
    if not total.dialogues["read"]:
        first = next(file for file in files if file.split == "train")
        raise FileError(
            f"No dialogue was found in {first.path}, which was read as {form_of(first.path, form)}. Compare it with the"
            " forms in data_prep/README.md, and name the right one with --format."
        )
    reasons = ", ".join(f"{reason} {count}" for reason, count in total.dropped.most_common())
    raise FileError(
        f"No dialogue is left to train on: all {total.dialogues['read']} were dropped ({reasons}). Give more or other data."
    )


def warnings(files: Sequence[Input], ledgers: Sequence[Ledger], form: str, unread: Collection[int] = ()) -> list[str]:
    """Return one sentence for each warning; a warning about a single file names the file.

    Args:
        files: The inputs.
        ledgers: Counts for each file after cleaning.
        form: Form that the user named, or `auto`.
        unread: Indices of files that were not read because --max-dialogues was reached.
    """
    total = Ledger()
    for ledger in ledgers:
        total.add(ledger)
    signs = total.warnings()
    sentences: list[str] = []
    for number, (file, ledger) in enumerate(zip(files, ledgers, strict=True)):
        if number in unread or len(sentences) == MAX_NAMED:
            continue
        if not ledger.dialogues["read"] and file.part is None:
            sentences.append(
                f"No dialogue was found in {file.name}, which was read as {form_of(file.path, form)}. Compare it with"
                " the forms in data_prep/README.md."
            )
        elif not ledger.pieces and ledger.dialogues["read"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.dropped.most_common(3))
            sentences.append(
                f"{file.name} gave no dialogue: all {ledger.dialogues['read']} that were read were dropped ({reasons})."
            )
        if len(files) > 1 and not signs:
            sentences += [f"{file.name}: {warning}" for warning in ledger.warnings()]
    return signs + sentences

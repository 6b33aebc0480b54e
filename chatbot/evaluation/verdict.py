"""Summary of a report in a few sentences, with warnings; `chatbot.language` has the Chinese of the sentences."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chatbot.errors import CheckpointError
from chatbot.evaluation.grid import ENOUGH_CONTEXTS
from chatbot.evaluation.report.tables import best_of, label
from chatbot.storage import read_json
from chatbot.text.dialogue_files import dialogue_files
from chatbot.text.prepared_set import is_prepared_set, larger_valid_share, load_manifest

Report = dict[str, Any]

FEW_CONTEXTS = 100
"""With fewer contexts than this, half of the 95 % interval of a share can be a tenth or more."""

MAX_NAMES = 3
"""Maximum number of names in a sentence."""

TRAINING = "training.json"


def verdict(report: Report) -> list[str]:
    """Return what the report says, the most important first; at most six sentences.

    Sentences about the replies are about the first checkpoint with its own settings.
    """
    part = report["checkpoints"][0]
    standard = own_method(part)
    row, people = part["decoding"][standard], report["reference"]
    lines = [_summary_of_ending(part["name"], row), _summary_of_worst_ending(report, (part["name"], standard))]
    lines += [_summary_of_quality(report), _summary_of_variety(part["name"], row, people)]
    lines += [_summary_of_likeness(report), _summary_of_methods(report)]
    return [line for line in lines if line]


def own_method(part: Report) -> str:
    """Return the name of the method with the settings of the checkpoint; the last method if none has them."""
    methods = part["decoding"]
    same = [name for name, row in methods.items() if row["settings"] == part["settings"]]
    return same[-1] if same else list(methods)[-1]


def _summary_of_ending(name: str, row: Report) -> str:
    count, cut_off = row["replies"], row["stop_reasons"]["limit"]
    if cut_off:
        return (
            f"{cut_off} of {count} replies of {name} did not end and were cut off. The length in tokens at the cut is"
            f" {row['longest_tokens']}."
        )
    if count == 1:
        return (
            f"The only reply of {name} ended by itself. Its length in tokens is {row['longest_tokens']}; no reply can be"
            f" longer than {row['bound_tokens']}."
        )
    return (
        f"All {count} replies of {name} ended by themselves. The longest length in tokens is {row['longest_tokens']}; no"
        f" reply can be longer than {row['bound_tokens']}."
    )


def _summary_of_worst_ending(report: Report, told: tuple[str, str]) -> str:
    """Name the checkpoint and the method with the most replies without an end, except the pair that was told of."""
    rows = {
        (part["name"], method): row
        for part in report["checkpoints"]
        for method, row in part["decoding"].items()
        if (part["name"], method) != told
    }
    if not rows:
        return ""
    (name, method), row = max(rows.items(), key=lambda item: item[1]["stop_reasons"]["limit"] / item[1]["replies"])
    cut_off, count = row["stop_reasons"]["limit"], row["replies"]
    if not cut_off:
        return ""
    return f"Worst at ending is {name} with {method}: {cut_off} of {count} replies did not end."


def _summary_of_quality(report: Report) -> str:
    """Compare the two best checkpoints, or the only one with the trigram model."""
    parts = sorted(report["checkpoints"], key=lambda part: part["quality"]["nats_per_unit"])
    first = parts[0]
    value, interval = first["quality"]["nats_per_unit"], first["quality"]["interval"]
    if len(parts) > 1:
        name, other = parts[1]["name"], parts[1]["quality"]["nats_per_unit"]
        compared, (low, high) = report["difference"]["dialogues"], report["difference"]["interval"]
        if low <= 0:
            return (
                f"{first['name']} ({value:.3f} nats/unit of all turns) and {name} ({other:.3f}) predict what people say"
                f" about equally well: the 95 % interval of the difference over {compared} dialogues, {low:.3f} to"
                f" {high:.3f}, contains 0."
            )
        return (
            f"{first['name']} predicts what people say better than {name}: {value:.3f} against {other:.3f} nats/unit of all"
            f" turns; the 95 % interval of the difference over {compared} dialogues is {low:.3f} to {high:.3f}."
        )
    trigram = report.get("baselines", {}).get("witten_bell_trigram")
    if trigram is not None:
        return (
            f"{first['name']} needs {value:.3f} nats for a character that people write, a trigram model {trigram:.3f}."
        )
    half = (interval[1] - interval[0]) / 2
    return f"{first['name']} needs {value:.3f} ± {half:.3f} nats for a character that people write."


def _summary_of_variety(name: str, row: Report, people: Report) -> str:
    if "dist_2" not in row or "dist_2" not in people:
        return ""
    value, other = row["dist_2"], people["dist_2"]
    low, high = row["intervals"]["dist_2"]
    if high < people["intervals"]["dist_2"][0]:
        return f"The replies of {name} are less varied than those of people: Dist-2 {value:.3f} against {other:.3f}."
    if low > people["intervals"]["dist_2"][1]:
        return f"The replies of {name} are more varied than those of people: Dist-2 {value:.3f} against {other:.3f}."
    return f"The replies of {name} are about as varied as those of people: Dist-2 {value:.3f} against {other:.3f}."


def _summary_of_likeness(report: Report) -> str:
    named = [(part["name"], method, row) for part in report["checkpoints"] for method, row in part["decoding"].items()]
    key = next((key for key in ("wrd", "bleu_2") if all(key in row for *_, row in named)), None)
    if key is None or len(named) < 2:
        return ""
    best = best_of([(row[key], *row["intervals"][key]) for *_, row in named], "high")
    if not any(best):
        return "No method is clearly more like people than the others."
    is_single = len(report["checkpoints"]) == 1
    names = [label(name, method, is_single) for (name, method, _), is_best in zip(named, best, strict=True) if is_best]
    if len(names) > MAX_NAMES:
        return f"{len(names)} of {len(named)} methods are equally like people; the others are clearly less so."
    return f"Most like people, by the words of their replies: {', '.join(names)}."


def _summary_of_methods(report: Report) -> str:
    if not report["left_out_methods"]:
        return ""
    shown = len(report["methods"])
    return (
        f"Decoding methods compared: {shown} of {shown + report['left_out_methods']}, because fewer than"
        f" {ENOUGH_CONTEXTS} contexts were answered; --methods all compares all."
    )


def warnings(report: Report, folders: Sequence[Path | None], data: str | Path) -> list[str]:
    """Return warnings for the reader of a report.

    Args:
        report: The report, with the names of its checkpoints.
        folders: Folder of each checkpoint.
        data: The data of the report.
    """
    sentences = []
    if report["contexts"] < FEW_CONTEXTS:
        sentences.append(_warning_of_few_contexts(report["contexts"], report["limited_by"], Path(data)))
    data_files, split = _identity(Path(data))
    seen, alike, shared = [], [], set()
    for part, folder in zip(report["checkpoints"], folders, strict=True):
        trained, held_out, names = _training_data(folder)
        if split in trained:
            seen.append(part["name"])
        elif names & data_files and split not in held_out:
            alike.append(part["name"])
            shared |= names & data_files
    halves = [
        part["name"] for part, folder in zip(report["checkpoints"], folders, strict=True) if _learnt_replies(folder)
    ]
    if halves:
        sentences.append(
            f"{', '.join(halves)} learned only the bot's turns (:replies). The validation figures of that training count"
            " these turns only, the figures here count all turns, so do not compare them."
        )
    if seen:
        sentences.append(
            f"{', '.join(seen)} learned from exactly these dialogues, so its numbers are too good. Use other dialogues."
        )
    if alike:
        files = ", ".join(sorted(shared)[:3])
        sentences.append(
            f"{', '.join(alike)} learned from a file that is also called {files}. If it is this file, the bot has seen the"
            " dialogues and the numbers are too good. Evaluate on dialogues that were kept out of training."
        )
    return sentences


def _warning_of_few_contexts(count: int, option: str | None, data: Path) -> str:
    """Return the warning with the option that gives more contexts.

    Args:
        count: Number of contexts.
        option: Option that limited their number; None if the data has no more.
        data: The data.
    """
    if option is not None:
        return (
            f"Too few contexts were answered ({count}), so most differences are chance. Raise {option}, so that there are at"
            f" least {FEW_CONTEXTS}."
        )
    if is_prepared_set(data):
        share = larger_valid_share(data, FEW_CONTEXTS / count)
        if share is None:
            return (
                f"Too few contexts were answered ({count}), so most differences are chance, and the valid split has no more."
                " Only more chats would change this; holding out more of these would leave too few to train on."
            )
        return (
            f"Too few contexts were answered ({count}), so most differences are chance, and the valid split has no more."
            f" Prepare with --valid-share {share} before the next training."
        )
    return (
        f"Too few contexts were answered ({count}), so most differences are chance, and the data has no more. Give --data"
        f" with at least {FEW_CONTEXTS} dialogues that no checkpoint was trained on."
    )


def _identity(data: Path) -> tuple[set[str], str | None]:
    """Return the names of the raw files of some data, and the content hash of a prepared set's evaluated split."""
    if not is_prepared_set(data):
        return {path.name for path in dialogue_files(data)}, None
    manifest = load_manifest(data)
    names = {Path(str(source.get("file"))).name for source in manifest["sources"]}
    return names, manifest["splits"].get("valid", {}).get("content_hash")


def _learnt_replies(folder: Path | None) -> bool:
    """Return whether a checkpoint was validated on the bot's turns of a set alone."""
    if folder is None or not (folder / TRAINING).is_file():
        return False
    try:
        record = read_json(folder / TRAINING)
    except CheckpointError:
        return False
    stages = record.get("stages")
    last = stages[-1] if isinstance(stages, list) and stages and isinstance(stages[-1], dict) else record
    data = last.get("data")
    entries = data if isinstance(data, list) and record.get("valid_dialogues") else []
    return any(isinstance(entry, dict) and entry.get("learnt") == "replies" for entry in entries)


def _training_data(folder: Path | None) -> tuple[set[str], set[str], set[str]]:
    """Return the data of a checkpoint and of those that it was made from.

    Returns:
        Content hashes of the training splits and of the validation splits, and names of the raw files.
    """
    trained: set[str] = set()
    held_out: set[str] = set()
    names: set[str] = set()
    waiting: list[Any] = []
    if folder is not None and (folder / TRAINING).is_file():
        with suppress(CheckpointError):
            waiting.append(read_json(folder / TRAINING))
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("train"), str) and isinstance(value.get("sources"), list):
                trained.add(value["train"])
                held_out.add(str(value.get("valid")))
                names.update(Path(name).name for name in value["sources"] if isinstance(name, str))
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return trained, held_out, names

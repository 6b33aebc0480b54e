"""The last step of a build: shards, counts and report become the folder of a prepared set."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chatbot.errors import FileError
from chatbot.storage import read_json, write_json
from chatbot.text.prepared_set import MANIFEST, load_manifest
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.cleaning.ledger import Ledger
from data_prep.corpus.content_hash import SPLITS
from data_prep.report import write_report
from data_prep.stages.arrow_files import FILE_SHIFT
from data_prep.stages.clean_block import Unit
from data_prep.stages.losses import final_count
from data_prep.stages.work_folder import WorkFolder


@dataclass(frozen=True)
class Input:
    """A file to read.

    Attributes:
        path: Where it is.
        split: What it is for.
        sha256: Of its bytes.
    """

    path: Path
    split: str
    sha256: str


def assemble(
    work: WorkFolder,
    files: Sequence[Input],
    units: Sequence[Unit],
    buckets: int,
    ledgers: Sequence[Ledger],
    about: dict,
) -> dict:
    """Puts the set together in the work folder and returns its manifest.

    Args:
        work: Holds what the steps made.
        files: What was read.
        units: Its blocks.
        buckets: How many shards there are.
        ledgers: What became of the dialogues of each file in cleaning; brought up to what became of them in the end.
        about: What the manifest begins with.

    Raises:
        FileError: Nothing is left in the train split.
    """
    target = work / "set"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    tokenizer = DialogueTokenizer.load(work / "tokenizer")
    tokenizer.save(target)
    shards = [read_json(work / f"shard-{bucket:05}.json") for bucket in range(buckets)]
    names = [split for split in SPLITS[::-1] if split != "test" or any(file.split == "test" for file in files)]
    of_split = {name: [shard[name] for shard in shards] for name in names}
    splits = {name: _assemble_split(work, target / name, of_split[name]) for name in names}
    if not splits["train"]["dialogues"]:
        raise FileError("No dialogue is left to train on: all are held out; give more data or lower --valid-share.")
    total = _count(work, units, buckets, ledgers)
    manifest = {
        **about,
        "dialogues": _counts(total),
        "dropped": dict(total.dropped.most_common()),
        "dirty_turns": dict(total.dirty.most_common()),
        "changed_turns": dict(total.changed.most_common()),
        "sources": [
            {"file": file.path.name, "sha256": file.sha256, "for": file.split, **_counts(ledger)}
            for file, ledger in zip(files, ledgers, strict=True)
        ],
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "splits": splits,
    }
    write_report(target / "report", manifest, total, tokenizer, of_split)
    with (target / "report" / "dropped.jsonl.gz").open("wb") as gone:
        for path in _gone_files(work, units, buckets):
            with path.open("rb") as part:
                shutil.copyfileobj(part, gone)
    text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
    (target / MANIFEST).write_text(text, encoding="utf-8")
    return load_manifest(target)


def _assemble_split(work: WorkFolder, folder: Path, shards: Sequence[dict]) -> dict:
    """The folder of a split, as `datasets` writes it, of the shards that are not empty."""
    folder.mkdir()
    found = [work / f"{folder.name}-{bucket:05}.arrow" for bucket, shard in enumerate(shards) if shard["dialogues"]]
    files = [f"data-{index:05}-of-{len(found):05}.arrow" for index in range(len(found))]
    for path, name in zip(found, files, strict=True):
        _link(path, folder / name)
    content = hashlib.sha256("".join(shard["content_hash"] for shard in shards).encode()).hexdigest()[:16]
    of_int32 = {"dtype": "int32", "_type": "Value"}
    turns = {"feature": {"feature": of_int32, "_type": "List"}, "_type": "List"}
    write_json(folder / "dataset_info.json", {"features": {"turns": turns, "units": of_int32}}, durable=False)
    state = {"_data_files": [{"filename": name} for name in files], "_fingerprint": content, "_split": None}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    write_json(folder / "state.json", state, durable=False)
    counts = {name: sum(shard[name] for shard in shards) for name in ("dialogues", "turns", "tokens", "units")}
    return {**counts, "content_hash": content}


def _count(work: WorkFolder, units: Sequence[Unit], buckets: int, ledgers: Sequence[Ledger]) -> Ledger:
    """Takes what was lost after cleaning into each file's ledger; returns the sum."""
    paths = [path for unit in units if (path := work / f"{unit.name}-cut.npy").exists()]
    paths += [work / f"shard-{bucket:05}.npy" for bucket in range(buckets)]
    rows = np.concatenate([np.load(path) for path in paths])
    total = Ledger()
    for number, ledger in enumerate(ledgers):
        final_count(rows[rows[:, 0] >> FILE_SHIFT == number], ledger)
        total.add(ledger)
    return total


def _gone_files(work: WorkFolder, units: Sequence[Unit], buckets: int) -> Iterator[Path]:
    for unit in units:
        yield work / f"{unit.name}.gz"
        if (cut := work / f"{unit.name}-cut.gz").exists():
            yield cut
    for bucket in range(buckets):
        yield work / f"shard-{bucket:05}.gz"


def _counts(ledger: Ledger) -> dict[str, int]:
    return {name: ledger.dialogues[name] for name in ("read", "kept_whole", "split", "dropped")}


def tokenizer_hash(tokenizer: DialogueTokenizer) -> str:
    """16 hexadecimal digits that are equal for equal tokenizers."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)

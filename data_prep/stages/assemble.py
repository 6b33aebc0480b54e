"""Stage 6: put shards, counts and report together as the folder of a prepared set."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatbot.errors import FileError
from chatbot.storage import write_json
from chatbot.text.dialogue import valid_text
from chatbot.text.prepared_set import MANIFEST, load_manifest
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.cleaning.ledger import Ledger
from data_prep.corpus.content_hash import SPLITS
from data_prep.report import write_report
from data_prep.stages.arrow_files import FILE_SHIFT
from data_prep.stages.block_id import BlockId
from data_prep.stages.losses import apply_losses
from data_prep.stages.make_tokenizer import ALL_HELD_OUT
from data_prep.stages.work_folder import WorkFolder, read_result


@dataclass(frozen=True)
class Input:
    """A file to read.

    Attributes:
        path: The file.
        split: Split that it is given for.
        sha256: Hash of its bytes.
        part: Key to read from a file of splits, see `data_prep.reading.formats.splits_of`; None reads the whole file.
    """

    path: Path
    split: str
    sha256: str
    part: str | None = None

    @property
    def name(self) -> str:
        """Name of the file for the report, with U+FFFD for bytes that are not text."""
        return valid_text(self.path.name)


def assemble(
    work: WorkFolder,
    files: Sequence[Input],
    blocks: Sequence[BlockId],
    buckets: int,
    ledgers: Sequence[Ledger],
    header: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the set to the folder `set` of the work folder and return its manifest.

    Args:
        work: The work folder, with the results of all stages.
        files: The input files.
        blocks: All blocks.
        buckets: Number of buckets, and of shards.
        ledgers: Counts for each file after cleaning; updated in place to the counts of the finished set.
        header: First entries of the manifest.

    Raises:
        FileError: No dialogue is left in the train split.
    """
    target = work / "set"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    tokenizer = DialogueTokenizer.load(work / "tokenizer")
    tokenizer.save(target)
    statistics = [read_result(work / f"shard-{bucket:05}.json") for bucket in range(buckets)]
    names = [split for split in SPLITS[::-1] if split != "test" or any(file.split == "test" for file in files)]
    shards = {name: [shard[name] for shard in statistics] for name in names}
    splits = {name: _assemble_split(work, target / name, shards[name]) for name in names}
    if not splits["train"]["dialogues"]:
        raise FileError(ALL_HELD_OUT)
    total = _finish_counts(work, blocks, buckets, ledgers)
    manifest = {
        **header,
        **_manifest_of_counts(files, ledgers, total),
        "turns": {**total.turns, "in_set": sum(split["turns"] for split in splits.values())},
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "splits": splits,
    }
    write_report(target / "report", manifest, total, tokenizer, shards)
    _join_files(_removed_files(work, blocks, buckets), target / "report" / "dropped.jsonl.gz")
    text = valid_text(json.dumps(manifest, ensure_ascii=False, indent=2)) + "\n"  # names in settings may not be text
    (target / MANIFEST).write_text(text, encoding="utf-8")
    return load_manifest(target)


def _assemble_split(work: WorkFolder, folder: Path, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Link the non-empty shards of a split, and write the files that `datasets.load_from_disk` needs.

    `Dataset.save_to_disk` would write them, but it copies all tokens, which takes as long as an eighth of a whole
    build, and its fingerprint depends on the times of files. A test compares the files of this stage with those of
    `save_to_disk`.

    Returns:
        Counts and content hash for the manifest.
    """
    folder.mkdir()
    sources = [work / f"{folder.name}-{bucket:05}.arrow" for bucket, shard in enumerate(shards) if shard["dialogues"]]
    names = [f"data-{index:05}-of-{len(sources):05}.arrow" for index in range(len(sources))]
    for source, name in zip(sources, names, strict=True):
        _link(source, folder / name)
    content = hashlib.sha256("".join(shard["content_hash"] for shard in shards).encode()).hexdigest()[:16]
    int32 = {"dtype": "int32", "_type": "Value"}
    turns = {"feature": {"feature": int32, "_type": "List"}, "_type": "List"}
    write_json(folder / "dataset_info.json", {"features": {"turns": turns, "units": int32}}, durable=False)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": content,
        "_split": None,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
    }
    write_json(folder / "state.json", state, durable=False)
    counts = {name: sum(shard[name] for shard in shards) for name in ("dialogues", "turns", "tokens", "units")}
    return {**counts, "content_hash": content}


def _finish_counts(work: WorkFolder, blocks: Sequence[BlockId], buckets: int, ledgers: Sequence[Ledger]) -> Ledger:
    """Correct the ledger of each file for what the stages after cleaning removed; return the sum of the ledgers."""
    paths = [path for block in blocks if (path := work / f"{block.name}-cut.npy").exists()]
    paths += [work / f"shard-{bucket:05}.npy" for bucket in range(buckets)]
    losses = np.concatenate([np.load(path) for path in paths])
    total = Ledger()
    for number, ledger in enumerate(ledgers):
        apply_losses(losses[losses["origin"] >> FILE_SHIFT == number], ledger)
        total.add(ledger)
    return total


def _removed_files(work: WorkFolder, blocks: Sequence[BlockId], buckets: int) -> Iterator[Path]:
    for block in blocks:
        yield work / f"{block.name}.gz"
        if (cut := work / f"{block.name}-cut.gz").exists():
            yield cut
    for bucket in range(buckets):
        yield work / f"shard-{bucket:05}.gz"


def _join_files(paths: Iterator[Path], target: Path) -> None:
    with target.open("wb") as joined:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, joined)


def _manifest_of_counts(files: Sequence[Input], ledgers: Sequence[Ledger], total: Ledger) -> dict[str, Any]:
    return {
        "dialogues": _counts(total),
        "dropped": dict(total.dropped.most_common()),
        "left_out": dict(total.left_out.most_common()),
        "dirty_turns": dict(total.dirty.most_common()),
        "changed_turns": dict(total.changed.most_common()),
        "sources": [
            {"file": file.name, "sha256": file.sha256, "for": file.split, **_counts(ledger)}
            for file, ledger in zip(files, ledgers, strict=True)
        ],
    }


def _counts(ledger: Ledger) -> dict[str, int]:
    return {name: ledger.dialogues[name] for name in ("read", "kept_whole", "split", "dropped")}


def tokenizer_hash(tokenizer: DialogueTokenizer) -> str:
    """Return 16 hexadecimal digits that are equal for equal tokenizers."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)

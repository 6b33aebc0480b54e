"""Building a prepared set: read, clean, deduplicate, split, tokenise, write, all or nothing.

The folder is described in `chatbot.dialogue_files`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from chatbot.bundled import locate
from chatbot.dialogue import count_units
from chatbot.dialogue_files import MANIFEST, FileError, is_prepared_set, load_manifest, split_features
from chatbot.tokenizer import DialogueTokenizer
from data_prep.clean import DUPLICATE, clean_dialogue
from data_prep.dedup import Seen, content_hash
from data_prep.sources import list_files, read_raw
from data_prep.split import is_valid


@dataclass(frozen=True)
class PrepareSettings:
    """What decides the content of a prepared set, beside the input files.

    Attributes:
        tokenizer: Folder whose tokenizer is taken; None trains one on the train split.
        vocab_size: Most ids of a tokenizer trained here.
        valid_share: Share of the dialogues held out, 0 to 1.
        max_dialogues: Stop reading after so many raw dialogues; None reads all.
        form: Form of the input files, one of `data_prep.sources.FORMS`, or auto.
    """

    tokenizer: str | None = None
    vocab_size: int = 8192
    valid_share: float = 0.05
    max_dialogues: int | None = None
    form: str = "auto"


def build(inputs: Sequence[str], output: str | Path, settings: PrepareSettings, overwrite: bool = False) -> dict:
    """Builds the prepared set and returns its manifest; an existing one with the same content is kept as it is.

    Raises:
        FileError: An input cannot be read, nothing is left after cleaning, or the output is taken.
    """
    output = Path(output).resolve()
    files = list_files(inputs)
    fingerprint = _fingerprint(files, settings)
    if output.exists() and not _is_empty_folder(output):
        if not _is_ours(output):
            raise FileError(f"{output} exists and is no prepared set; give another --output.")
        manifest = load_manifest(output)
        if manifest["fingerprint"] == fingerprint and not overwrite:
            print(f"{output} is up to date: same inputs, same settings", file=sys.stderr)
            return manifest
        if not overwrite:
            raise FileError(f"{output} holds a set made from other inputs; give --overwrite or another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        target = Path(folder) / "set"
        target.mkdir()
        splits, report = _collect(files, settings)
        tokenizer = _tokenizer(splits["train"], settings)
        tokenizer.save(target)
        manifest = {
            "fingerprint": fingerprint,
            "settings": asdict(settings),
            **report,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "splits": {name: _write_split(target / name, dialogues, tokenizer) for name, dialogues in splits.items()},
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
        (target / MANIFEST).write_text(text, encoding="utf-8")
        _replace(target, output)
    return manifest


def tokenizer_hash(tokenizer: DialogueTokenizer) -> str:
    """16 hexadecimal digits that are equal for equal tokenizers."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]


def _collect(files: Iterable[Path], settings: PrepareSettings) -> tuple[dict[str, list[list[str]]], dict]:
    splits: dict[str, list[list[str]]] = {"train": [], "valid": []}
    dropped: Counter[str] = Counter()
    sources = []
    seen, read = Seen(), 0
    for path in files:
        counts = Counter()
        room = None if settings.max_dialogues is None else settings.max_dialogues - read
        for raw in islice(_with_progress(path, settings.form), room):
            counts["read"] += 1
            turns, reason = clean_dialogue(raw)
            if turns is not None:
                key = content_hash(turns)
                if not seen.add(key):
                    turns, reason = None, DUPLICATE
            if turns is None:
                dropped[reason] += 1
                counts["dropped"] += 1
            else:
                splits["valid" if is_valid(key, settings.valid_share) else "train"].append(turns)
                counts["kept"] += 1
        read += counts["read"]
        sources.append({"file": path.name, "sha256": _sha256(path), **counts})
    if not splits["train"]:
        why = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()) or "all went to validation"
        raise FileError(f"No dialogue is left to train on out of {read} read ({why}); give more or other data.")
    return splits, {"read": read, "dropped": dict(dropped.most_common()), "sources": sources}


def _with_progress(path: Path, form: str) -> Iterator[object]:
    return iter(tqdm(read_raw(path, form), desc=path.name, unit=" dialogues", mininterval=1, file=sys.stderr))


def _tokenizer(dialogues: list[list[str]], settings: PrepareSettings) -> DialogueTokenizer:
    if settings.tokenizer is not None:
        return DialogueTokenizer.load(locate(settings.tokenizer))
    return DialogueTokenizer.train((turn for turns in dialogues for turn in turns), settings.vocab_size)


def _write_split(folder: Path, dialogues: list[list[str]], tokenizer: DialogueTokenizer) -> dict:
    import datasets

    flat = iter(tokenizer.encode_batch([turn for turns in dialogues for turn in turns]))
    ids = [list(islice(flat, len(turns))) for turns in dialogues]
    units = [count_units(turns) for turns in dialogues]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"turns": ids, "units": units}, features=split_features()).save_to_disk(str(folder))
    content = hashlib.sha256(b"".join(map(content_hash, dialogues)))
    return {
        "dialogues": len(dialogues),
        "turns": sum(map(len, dialogues)),
        "tokens": sum(len(turn) + 1 for turns in ids for turn in turns),
        "units": sum(units),
        "content_hash": content.hexdigest()[:16],
    }


def _fingerprint(files: Iterable[Path], settings: PrepareSettings) -> str:
    """Hash of everything that decides the content: files, settings, tokenizer."""
    parts = [_sha256(path) for path in files] + [json.dumps(asdict(settings), sort_keys=True)]
    if settings.tokenizer is not None:
        parts.append(tokenizer_hash(DialogueTokenizer.load(locate(settings.tokenizer))))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}; check the path.") from None


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a prepared set and holds nothing else, so that replacing it loses nothing."""
    written = {MANIFEST, "tokenizer.json", "tokenizer_config.json", "train", "valid"}
    return is_prepared_set(folder) and {path.name for path in folder.iterdir()} <= written


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _replace(source: Path, target: Path) -> None:
    """Puts `source` in the place of `target`; the old one is gone only when the new one stands there."""
    if not target.exists():
        os.rename(source, target)
        return
    old = source.parent / "old"
    os.rename(target, old)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old)

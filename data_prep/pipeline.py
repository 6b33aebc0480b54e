"""Building a prepared set: clean, count, cut, deduplicate, split, tokenise, write; in parallel, and all or nothing.

    inputs -> blocks -> [clean_block] -> units, by bucket -> find_frequent -> [cut_unit] -> (near-duplicates)
           -> tokenizer -> [write_shard] of each bucket -> the set

Steps in brackets run in several processes. Every result is a file of the work folder, so that a killed build goes on
where it was, and depends on the inputs and the settings alone, so that it ends with the same bytes. Memory holds a few
blocks or buckets and 32 bytes a reply. The folder that comes out is described in `chatbot.text.dialogue_files`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path

from tqdm import tqdm

import chatbot.text.dialogue
import chatbot.text.tokenizer
from chatbot.checkpoint.location import locate
from chatbot.errors import FileError, XianliaoError
from chatbot.storage import read_json, write_json
from chatbot.text.prepared_set import MANIFEST, is_prepared_set, load_manifest
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.cleaning import cleaner
from data_prep.cleaning.ledger import Ledger
from data_prep.cleaning.rules import Rule
from data_prep.corpus.content_hash import SPLITS
from data_prep.corpus.frequent_turns import FREQUENCY_RULES, FrequentTurns, find_frequent
from data_prep.reading.files import PACKED_SUFFIXES, Reader, list_files, sha256_of
from data_prep.reading.formats import Block, read_blocks, records
from data_prep.settings import PrepareSettings
from data_prep.stages import clean_block, cut_frequent, write_shard
from data_prep.stages.arrow_files import texts_of
from data_prep.stages.assemble import Input, assemble, tokenizer_hash
from data_prep.stages.clean_block import Unit
from data_prep.stages.parallel import WorkerError, run_tasks
from data_prep.stages.work_folder import WorkFolder, work_path

BUCKET_BYTES = 32 << 20
"""Bytes of input for which there is a bucket; it takes about three times as much memory in a process."""

PACKED = 4
"""How much larger packed text is taken to be than its file."""

TOP_REPLIES = 30


def build(
    inputs: Sequence[str],
    output: str | Path,
    settings: PrepareSettings,
    overwrite: bool = False,
    processes: int = 1,
    valid: Sequence[str] = (),
    test: Sequence[str] = (),
) -> dict:
    """Builds the prepared set and returns its manifest; an existing one with the same content is kept as it is.

    Args:
        inputs: Files and folders.
        output: The set; beside it a work folder, `.NAME.building`, which is gone at the end.
        settings: What decides the content.
        overwrite: Replace another set.
        processes: How many work; more than one start as the `spawn` method of multiprocessing does.
        valid: Files of the valid split, instead of a share of the inputs.
        test: Files of a test split; no dialogue of theirs is in the other splits.

    Raises:
        FileError: An input cannot be read, nothing is left after cleaning, the output is taken or the disk is full.
    """
    output = Path(output).resolve()
    files = [
        Input(path, split, sha256_of(path))
        for split, names in (("train", inputs), ("valid", valid), ("test", test))
        for path in list_files(names)
        if not _is_within(path, output)
    ]
    fingerprint = _fingerprint(files, settings)
    if output.exists() and not _is_empty_folder(output):
        if not _is_ours(output):
            raise FileError(f"{output} exists and is no prepared set, or more than one; give another --output.")
        manifest = load_manifest(output)
        if manifest["fingerprint"] == fingerprint and not overwrite:
            print(f"{output} is up to date: same inputs, same settings", file=sys.stderr)
            if work_path(output).exists():  # of a build that was killed as it ended
                WorkFolder(output, fingerprint).release(keep=False)
            return manifest
        if not overwrite:
            raise FileError(f"{output} holds a set made from other inputs; give --overwrite or another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with _work_folder(output, fingerprint) as work:
        return Build(work, files, settings, processes).run(output, fingerprint)


@contextmanager
def _work_folder(output: Path, fingerprint: str) -> Iterator[WorkFolder]:
    """The work folder; it stays when the build can go on from it."""
    work = WorkFolder(output, fingerprint)
    keep = True
    try:
        if work.is_resumed:
            print(f"going on with the build of {output} that was stopped", file=sys.stderr)
        yield work
        keep = False
    except WorkerError:
        raise
    except XianliaoError:
        keep = False
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FileError(f"The disk with {output} is full; make room and run again to go on from here.") from None
        raise
    finally:
        work.release(keep)


class Build:
    """One build, step by step.

    Args:
        work: Where its files are.
        files: What it reads.
        settings: What decides the content.
        processes: How many work.
    """

    def __init__(self, work: WorkFolder, files: Sequence[Input], settings: PrepareSettings, processes: int):
        self.work, self.files, self.settings, self.processes = work, files, settings, processes
        size = sum(file.path.stat().st_size * (PACKED if file.path.suffix in PACKED_SUFFIXES else 1) for file in files)
        self.buckets = min(size // BUCKET_BYTES + 1, 4096)
        given = any(file.split == "valid" for file in files)
        self.valid_share = 0.0 if given else settings.valid_share
        self.units: list[Unit] = []

    def run(self, output: Path, fingerprint: str) -> dict:
        """All steps; returns the manifest of the set, which then stands in `output`."""
        started = time.perf_counter()
        write_shard.forget()
        self._clean()
        ledgers = self._ledgers()
        self._check_left(ledgers)
        frequent = self._cut()
        self._find_near()
        self._make_tokenizer()
        self._shards(frequent)
        about = {"fingerprint": fingerprint, "settings": asdict(self.settings)}
        manifest = assemble(self.work, self.files, self.units, self.buckets, ledgers, about)
        _replace(self.work / "set", output)
        minutes, seconds = divmod(round(time.perf_counter() - started), 60)
        print(f"{manifest['dialogues']['read']:,} dialogues in {minutes} min {seconds} s", file=sys.stderr)
        return manifest

    # --- cleaning ---

    def _clean(self) -> None:
        total = sum(file.path.stat().st_size for file in self.files)
        done = self.work / "cleaned.json"
        if done.exists():
            self.units = [self._unit(*place) for place in read_json(done)["units"]]
            return
        with tqdm(desc="cleaning", total=total, unit="B", unit_scale=True, mininterval=1, file=sys.stderr) as bar:
            for _ in run_tasks(clean_block.clean_block, self._blocks(bar), self.processes):
                pass
            bar.update(total - bar.n)
        write_json(done, {"units": [unit.place for unit in self.units]}, durable=False)

    def _blocks(self, bar: tqdm) -> Iterator[tuple]:
        """Arguments of `clean_block` for each block that has not been cleaned."""
        room = self.settings.max_dialogues
        for number, file in enumerate(self.files):
            if file.split != "train":
                room = None  # train comes first
            elif room == 0:
                continue
            reader = Reader(file.path)
            before = bar.n
            for index, block in enumerate(read_blocks(reader, self.settings.form)):
                if room is not None:
                    block, taken = _first_records(block, room)
                    room -= taken
                unit = self._unit(number, index)
                self.units.append(unit)
                if not (self.work / f"{unit.name}.json").exists():
                    yield self.work.path, unit, block, self.settings.clean, self.buckets
                bar.update(before + reader.packed_bytes - bar.n)
                if room == 0:
                    break
            else:
                reader.check(file.sha256)

    def _unit(self, file: int, index: int) -> Unit:
        return Unit((file, index), self.files[file].path.name, self.files[file].split)

    def _ledgers(self) -> list[Ledger]:
        """What became of the dialogues of each file, in cleaning."""
        ledgers = [Ledger() for _ in self.files]
        for unit in self.units:
            ledgers[unit.file].add(Ledger.from_json(read_json(self.work / f"{unit.name}.json")))
        return ledgers

    def _check_left(self, ledgers: Sequence[Ledger]) -> None:
        total = Ledger()
        for file, ledger in zip(self.files, ledgers, strict=True):
            if file.split == "train":
                total.add(ledger)
        if not total.pieces:
            why = ", ".join(f"{reason} {count}" for reason, count in total.dropped.most_common())
            raise FileError(
                f"No dialogue is left to train on out of {total.dialogues['read']} read ({why}); give more or other data."
            )

    # --- across dialogues ---

    def _cut(self) -> FrequentTurns:
        """Finds what is too frequent and takes it out of the units."""
        path = self.work / "frequent.npz"
        train = [unit for unit in self.units if unit.split == "train"]
        on = {rule.name for rule in FREQUENCY_RULES if self.settings.clean.is_on(rule)}
        if not path.exists():
            hashes = (clean_block.turn_hashes(self.work / f"{unit.name}.arrow") for unit in train)
            find_frequent(hashes, self.settings.frequency, on, TOP_REPLIES).save(path)
        frequent = FrequentTurns.load(path)
        if len(frequent):
            waiting = [unit for unit in train if not (self.work / f"{unit.name}-cut.npy").exists()]
            tasks = [(self.work.path, unit, path, self.buckets) for unit in waiting]
            self._in_parallel("cutting", cut_frequent.cut_unit, tasks)
        return frequent

    def _find_near(self) -> None:
        settings = self.settings
        if settings.near_duplicates == "off" or (self.work / "near.npy").exists():
            return
        waiting = [bucket for bucket in range(self.buckets) if not (self.work / f"near-{bucket:05}.npz").exists()]
        tasks = [(self.work.path, self.units, bucket, self.valid_share) for bucket in waiting]
        self._in_parallel("comparing", write_shard.sign_bucket, tasks)
        write_shard.find_near(
            self.work.path, self.buckets, settings.near_threshold, settings.near_duplicates == "held-out"
        )

    def _make_tokenizer(self) -> None:
        folder, settings = self.work / "tokenizer", self.settings
        if folder.exists():
            return
        if settings.tokenizer is not None:
            tokenizer = DialogueTokenizer.load(locate(settings.tokenizer))
        else:
            started = time.perf_counter()
            texts = self._sample()
            tokenizer = DialogueTokenizer.train(texts, settings.vocab_size, word_count=settings.word_count)
            seconds = time.perf_counter() - started
            print(f"tokenizer trained on {sum(map(len, texts)):,} characters in {seconds:.0f} s", file=sys.stderr)
        part = self.work / "tokenizer.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        tokenizer.save(part)
        os.replace(part, folder)

    def _sample(self) -> list[str]:
        """Turns of the train split: a random sample, for what bucket a dialogue is in depends on its hash."""
        texts, room = [], self.settings.tokenizer_characters
        for bucket in range(self.buckets):
            found = write_shard.read_bucket(self.work.path, self.units, bucket, self.valid_share)
            train = found.rank == SPLITS.index("train")
            for turns, is_train in zip(texts_of(found.rows.column("turns")), train.tolist(), strict=True):
                if is_train:
                    texts += turns
                    if room is not None and (room := room - sum(map(len, turns))) <= 0:
                        return texts
        if not texts:
            raise FileError("No dialogue is left to train on: all are held out; give more data or lower --valid-share.")
        return texts

    def _shards(self, frequent: FrequentTurns) -> None:
        top = frozenset(frequent.top.tolist())
        waiting = [bucket for bucket in range(self.buckets) if not (self.work / f"shard-{bucket:05}.json").exists()]
        seed = self.settings.seed
        tasks = [(self.work.path, self.units, bucket, self.valid_share, seed, top) for bucket in waiting]
        started = time.perf_counter()
        self._in_parallel("tokenising", write_shard.write_shard, tasks)
        seconds = max(time.perf_counter() - started, 1e-3)
        done = [read_json(self.work / f"shard-{bucket:05}.json") for bucket in waiting]
        characters = sum(split["characters"] for shard in done for split in shard.values())
        print(
            f"tokenised {characters:,} characters, {characters / seconds / 1e6:.2f} million a second", file=sys.stderr
        )

    def _in_parallel(self, name: str, function, tasks: list[tuple]) -> None:
        with tqdm(desc=name, total=len(tasks), mininterval=1, file=sys.stderr) as bar:
            for _ in run_tasks(function, tasks, self.processes):
                bar.update()


def all_rules() -> tuple[Rule, ...]:
    """All rules that can be switched."""
    return (*cleaner.RULES.values(), *FREQUENCY_RULES)


def _first_records(block: Block, room: int) -> tuple[Block, int]:
    """A block with at most `room` records, and how many it has."""
    first = []
    for record in records(block):
        if len(first) == room:
            break
        first.append(record)
    return Block(block.first, records=tuple(first)), len(first)


def _fingerprint(files: Sequence[Input], settings: PrepareSettings) -> str:
    """Hash of everything that decides the content: files, settings, tokenizer, word list, and this program's rules."""
    parts = [f"{file.split} {file.path.name} {file.sha256}" for file in files]
    parts += [json.dumps(asdict(settings), sort_keys=True), _program_hash()]
    if settings.clean.words is not None:
        parts.append(sha256_of(Path(settings.clean.words)))
    if settings.tokenizer is not None:
        parts.append(tokenizer_hash(DialogueTokenizer.load(locate(settings.tokenizer))))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def _program_hash() -> str:
    """Hash of the code that decides the content: sets of another version are not taken for this one's."""
    ours = Path(__file__).parent
    parts = (
        "settings.py",
        "pipeline.py",
        "reading/*.py",
        "cleaning/*.py",
        "cleaning/*.txt",
        "corpus/*.py",
        "stages/*.py",
    )
    paths = [path for part in parts for path in sorted(ours.glob(part))]
    paths += [Path(module.__file__) for module in (chatbot.text.dialogue, chatbot.text.tokenizer)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a prepared set and holds nothing else, so that replacing it loses nothing."""
    written = {MANIFEST, "tokenizer.json", "tokenizer_config.json", "report", *SPLITS}
    return is_prepared_set(folder) and {path.name for path in folder.iterdir()} <= written


def _is_within(path: Path, output: Path) -> bool:
    """Whether an input file is part of the output or of its work folder, as when both are in one folder."""
    path = path.resolve()
    return any(folder in path.parents for folder in (output, work_path(output)))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _replace(source: Path, target: Path) -> None:
    """Puts `source` in the place of `target`; the old one is gone only when the new one stands there."""
    if not target.exists():
        os.rename(source, target)
        return
    old = source.parent / "old"
    shutil.rmtree(old, ignore_errors=True)
    os.rename(target, old)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old)

"""Building a prepared set: clean, count, cut, deduplicate, split, tokenize, write; in parallel, and all or nothing.

    inputs -> blocks -> [clean_block] -> pieces, by bucket -> find_frequent -> [cut_block]
           -> ([sign_bucket] -> find_near) -> make_tokenizer -> [write_shard] of each bucket -> assemble

* A *block* is a part of an input file, of some megabytes.
* A *piece* is a clean dialogue: a raw dialogue or a part of one.
* A *bucket* is a part of all pieces; the hash of its content decides the bucket of a piece.
* A *shard* is the part of a split that one bucket holds.

Stages in brackets run in several processes. Every stage writes files to the work folder, so that a killed build can be
continued. These files depend on the inputs and the settings alone, so that a continued build gives the same bytes. Memory
holds a few blocks or buckets, and 32 bytes per reply. `chatbot.text.dialogue_files` describes the finished set.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chatbot.errors import FileError
from chatbot.language.translation import labelled, translate
from chatbot.storage import write_json
from chatbot.text.packed_files import PACKED_SUFFIXES, PackedFile
from chatbot.text.prepared_set import MANIFEST, is_prepared_set, load_manifest
from data_prep.cleaning import cleaner
from data_prep.cleaning.ledger import Ledger
from data_prep.cleaning.rule import Rule
from data_prep.corpus.content_hash import SPLITS
from data_prep.corpus.frequent_turns import FREQUENCY_RULES, FrequentTurns, find_frequent
from data_prep.doubts import check_dialogues_left, warnings
from data_prep.fingerprint import changed_settings, fingerprint_of
from data_prep.reading.files import list_files, sha256_of
from data_prep.reading.formats import Block, check_text, read_blocks, records, splits_of
from data_prep.reading.records import Record
from data_prep.settings import PrepareSettings
from data_prep.stages import clean_block, cut_frequent, mark_near, write_shard
from data_prep.stages.assemble import Input, assemble
from data_prep.stages.block_id import BlockId
from data_prep.stages.make_tokenizer import make_tokenizer
from data_prep.stages.parallel import run_tasks
from data_prep.stages.work_folder import WorkFolder, open_work_folder, read_result, work_path

BUCKET_BYTES = 32 << 20
"""Bytes of input per bucket; a process needs about three times as much memory for a bucket."""
MAX_BUCKETS = 4096
NOTHING_HELD_OUT = (
    "no dialogue is held out, so the quality of a trained bot cannot be measured; raise --valid-share, or name files with"
    " --valid"
)
PACKED_RATIO = 4
"""Assumed ratio of the size of the content of a compressed file to the size of the file."""
TOP_REPLIES = 30


def build(
    inputs: Sequence[str],
    output: str | Path,
    settings: PrepareSettings,
    overwrite: bool = False,
    processes: int = 1,
    valid: Sequence[str] = (),
    test: Sequence[str] = (),
    is_quiet: bool = False,
) -> dict[str, Any]:
    """Build a prepared set and return its manifest; an existing set with the same content is left as it is.

    Args:
        inputs: Files and folders.
        output: Folder of the set. Beside it a work folder, `.NAME.building`, exists during the build.
        settings: Everything else that decides the content.
        overwrite: Whether to replace a set with other content.
        processes: Number of worker processes; with 1 the work is done in this one. Workers are started by `spawn`.
        valid: Files of the valid split, in place of a share of the inputs.
        test: Files of a test split; its dialogues are in no other split.
        is_quiet: Whether to show no progress and no figures, for data that the user did not name; warnings are shown.

    Raises:
        FileError: An input cannot be read, no dialogue is left after cleaning, the output exists or the disk is full.
    """
    output = Path(output).resolve()
    files = _inputs({"train": inputs, "valid": valid, "test": test}, output, settings.form)
    fingerprint = fingerprint_of(files, settings)
    if output.exists() and not _is_empty_folder(output):
        if not _is_only_a_set(output):
            raise FileError(f"{output} exists and is not a prepared set, or holds other files. Give another --output.")
        manifest = load_manifest(output)
        if manifest["fingerprint"] == fingerprint and not overwrite:
            print(translate(f"{output} is up to date: same inputs, same settings"), file=sys.stderr)
            if work_path(output).exists():  # left by a build that was killed at its very end
                WorkFolder(output, fingerprint).release(keep=False)
            return manifest
        if not overwrite:
            changed = changed_settings(manifest.get("settings"), settings)
            if changed:
                raise FileError(
                    f"{output} holds a set made with other settings ({', '.join(changed)} changed). Add --overwrite or give"
                    " another --output."
                )
            raise FileError(f"{output} holds a set made from other inputs. Add --overwrite or give another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with open_work_folder(output, fingerprint) as work:
        return Build(work, files, settings, processes, is_quiet).run(output, fingerprint)


def _inputs(paths: dict[str, Sequence[str]], output: Path, form: str) -> list[Input]:
    """Return the files to read, those for train first; a train file with several splits is listed once per split."""
    files = []
    named = [
        (split, path) for split, names in paths.items() for path in list_files(names) if not _is_within(path, output)
    ]
    total = sum(path.stat().st_size for _, path in named)
    with tqdm(desc="hashing", total=total, unit="B", unit_scale=True, delay=1, mininterval=1, file=sys.stderr) as bar:
        for split, path in named:
            check_text(path)  # before its bytes are hashed, which can take minutes
            parts = splits_of(path, form) if split == "train" else ()
            sha256 = sha256_of(path, bar.update)
            files += [Input(path, part, sha256, part) for part in parts] or [Input(path, split, sha256)]
    return sorted(files, key=lambda file: list(paths).index(file.split))


class Build:
    """One build, stage by stage.

    Args:
        work: The work folder.
        files: The input files, those for train first.
        settings: Everything else that decides the content.
        processes: Number of worker processes.
        is_quiet: Whether to show no progress and no figures.
    """

    def __init__(
        self,
        work: WorkFolder,
        files: Sequence[Input],
        settings: PrepareSettings,
        processes: int,
        is_quiet: bool = False,
    ):
        self.work, self.files, self.settings, self.processes = work, files, settings, processes
        self.is_quiet = is_quiet
        self.buckets = min(sum(_content_bytes(file.path) for file in files) // BUCKET_BYTES + 1, MAX_BUCKETS)
        has_valid_files = any(file.split == "valid" for file in files)
        self.valid_share = 0.0 if has_valid_files else settings.valid_share
        self.blocks: list[BlockId] = []
        self.unread: list[int] = []

    def run(self, output: Path, fingerprint: str) -> dict[str, Any]:
        """Run all stages, move the set to `output` and return its manifest."""
        started = time.perf_counter()
        forget_work_folders()
        self._clean()
        ledgers = self._read_ledgers()
        check_dialogues_left(self.files, ledgers, self.settings.form)
        frequent = self._cut()
        self._find_near()
        if not (self.work / "tokenizer").exists():
            make_tokenizer(self.work.path, self.blocks, self.buckets, self.valid_share, self.settings)
        self._write_shards(frequent)
        header: dict[str, Any] = {"fingerprint": fingerprint, "settings": asdict(self.settings)}
        header["warnings"] = warnings(self.files, ledgers, self.settings.form, self.unread)
        manifest = assemble(self.work, self.files, self.blocks, self.buckets, ledgers, header)
        _replace(self.work / "set", output)
        minutes, seconds = divmod(round(time.perf_counter() - started), 60)
        self._say(f"{manifest['dialogues']['read']:,} dialogues in {minutes} min {seconds} s")
        for warning in manifest["warnings"]:
            print(labelled("warning: ", warning), file=sys.stderr)
        if self.valid_share and not manifest["splits"]["valid"]["dialogues"]:
            print(labelled("warning: ", NOTHING_HELD_OUT), file=sys.stderr)
        return manifest

    # --- cleaning ---

    def _clean(self) -> None:
        total = sum(file.path.stat().st_size for file in self.files)
        done = self.work / "cleaned.json"
        if done.exists():
            stored = read_result(done)
            self.blocks = [self._block_id(file, index) for file, index in stored["blocks"]]
            self.unread = stored["unread"]
            return
        with tqdm(
            desc="cleaning",
            total=total,
            unit="B",
            unit_scale=True,
            mininterval=1,
            file=sys.stderr,
            disable=self.is_quiet,
        ) as bar:
            for _ in run_tasks(clean_block.clean_block, self._clean_tasks(bar), self.processes):
                pass
            bar.update(total - bar.n)
        blocks = [(block.file, block.index) for block in self.blocks]
        write_json(done, {"blocks": blocks, "unread": self.unread}, durable=False)

    def _clean_tasks(self, bar: tqdm) -> Iterator[tuple[Path, BlockId, Block, Any, int]]:
        """Yield the arguments of `clean_block` for each block that has not been cleaned, and list all blocks."""
        records_left = self.settings.max_dialogues
        for number, file in enumerate(self.files):
            if file.split != "train":
                records_left = None  # the train files come first
            elif records_left == 0:
                self.unread.append(number)
                continue
            packed = PackedFile(file.path)
            before = bar.n
            for index, block in enumerate(
                read_blocks(packed, self.settings.form, part=file.part, bot=self.settings.bot)
            ):
                if records_left is not None:
                    block, count = _first_records(block, records_left)
                    records_left -= count
                block_id = self._block_id(number, index)
                self.blocks.append(block_id)
                if not (self.work / f"{block_id.name}.json").exists():
                    yield self.work.path, block_id, block, self.settings.clean, self.buckets
                bar.update(before + packed.read_bytes - bar.n)
                if records_left == 0:
                    break
            else:
                packed.check_unchanged(file.sha256)

    def _block_id(self, file: int, index: int) -> BlockId:
        return BlockId(file, index, self.files[file].name, self.files[file].split)

    def _read_ledgers(self) -> list[Ledger]:
        """Return the counts of each file after cleaning."""
        ledgers = [Ledger() for _ in self.files]
        for block in self.blocks:
            ledgers[block.file].add(Ledger.from_json(read_result(self.work / f"{block.name}.json")))
        return ledgers

    # --- across dialogues ---

    def _cut(self) -> FrequentTurns:
        """Find the turns that are too frequent in the train files, and cut dialogues at them."""
        path = self.work / "frequent.npz"
        blocks = [block for block in self.blocks if block.split == "train"]
        rules = {rule.name for rule in FREQUENCY_RULES if self.settings.clean.is_on(rule)}
        if not path.exists():
            hashes = (clean_block.read_turn_hashes(self.work / f"{block.name}.arrow") for block in blocks)
            find_frequent(hashes, self.settings.frequency, rules, TOP_REPLIES).save(path)
        frequent = FrequentTurns.load(path)
        if len(frequent):
            waiting = [block for block in blocks if not (self.work / f"{block.name}-cut.npy").exists()]
            tasks = [(self.work.path, block, path, self.buckets) for block in waiting]
            self._run("cutting", cut_frequent.cut_block, tasks)
        return frequent

    def _find_near(self) -> None:
        settings = self.settings
        if settings.near_duplicates == "off" or (self.work / mark_near.NEAR_FILE).exists():
            return
        waiting = [bucket for bucket in range(self.buckets) if not (self.work / f"near-{bucket:05}.npz").exists()]
        tasks = [(self.work.path, self.blocks, bucket, self.valid_share) for bucket in waiting]
        self._run("comparing", mark_near.sign_bucket, tasks)
        held_out_only = settings.near_duplicates == "held-out"
        mark_near.find_near(self.work.path, self.buckets, settings.near_threshold, held_out_only)

    def _write_shards(self, frequent: FrequentTurns) -> None:
        top = frozenset(frequent.top.tolist())
        waiting = [bucket for bucket in range(self.buckets) if not (self.work / f"shard-{bucket:05}.json").exists()]
        seed = self.settings.seed
        tasks = [(self.work.path, self.blocks, bucket, self.valid_share, seed, top) for bucket in waiting]
        started = time.perf_counter()
        self._run("tokenizing", write_shard.write_shard, tasks)
        seconds = max(time.perf_counter() - started, 1e-3)
        statistics = [read_result(self.work / f"shard-{bucket:05}.json") for bucket in waiting]
        characters = sum(split["characters"] for shard in statistics for split in shard.values())
        speed = characters / seconds / 1e6
        self._say(f"tokenized {characters:,} characters, {speed:.2f} million per second")

    def _run(self, name: str, function: Callable[..., None], tasks: Sequence[tuple]) -> None:
        with tqdm(desc=name, total=len(tasks), mininterval=1, file=sys.stderr, disable=self.is_quiet) as bar:
            for _ in run_tasks(function, tasks, self.processes):
                bar.update()

    def _say(self, text: str) -> None:
        if not self.is_quiet:
            print(translate(text), file=sys.stderr)


def all_rules() -> tuple[Rule, ...]:
    """Return all rules that can be switched."""
    return (*cleaner.RULES.values(), *FREQUENCY_RULES)


def forget_work_folders() -> None:
    """Clear the cached files of work folders; another build in this process can use the same folder name."""
    cut_frequent.read_frequent.cache_clear()
    mark_near.near_keys.cache_clear()
    write_shard.forget_tokenizer()


def _content_bytes(path: Path) -> int:
    """Return the approximate size of a file's content."""
    return path.stat().st_size * (PACKED_RATIO if path.suffix in PACKED_SUFFIXES else 1)


def _first_records(block: Block, count: int) -> tuple[Block, int]:
    """Return a block with the first `count` records of a block, and how many records it holds."""
    first: list[Record] = []
    for record in records(block):
        if len(first) == count:
            break
        first.append(record)
    return Block(block.first, records=tuple(first)), len(first)


def _is_only_a_set(folder: Path) -> bool:
    """Whether a folder is a prepared set without other files, so that it can be replaced without loss."""
    names = {MANIFEST, "tokenizer.json", "tokenizer_config.json", "report", *SPLITS}
    return is_prepared_set(folder) and {path.name for path in folder.iterdir()} <= names


def _is_within(path: Path, output: Path) -> bool:
    """Whether an input file is in the output or in its work folder, as when an input folder contains the output."""
    path = path.resolve()
    return any(folder in path.parents for folder in (output, work_path(output)))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _replace(source: Path, target: Path) -> None:
    """Rename a folder to `target`; an old folder of that name is deleted only after `source` is renamed."""
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

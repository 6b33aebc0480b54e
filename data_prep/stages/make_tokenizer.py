"""Stage 4: load the tokenizer of the set, or train one on a sample of the train split."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chatbot.checkpoint.location import locate
from chatbot.errors import FileError
from chatbot.language.translation import translate
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.corpus.content_hash import SPLITS
from data_prep.settings import PrepareSettings
from data_prep.stages.arrow_files import texts_of
from data_prep.stages.block_id import BlockId
from data_prep.stages.buckets import read_bucket

ALL_HELD_OUT = "No dialogue is left to train on: all are held out. Give more data or a lower --valid-share."


def make_tokenizer(
    folder: Path, blocks: Sequence[BlockId], buckets: int, valid_share: float, settings: PrepareSettings
) -> None:
    """Write the folder `tokenizer` of the work folder.

    Args:
        folder: The work folder.
        blocks: All blocks.
        buckets: Number of buckets.
        valid_share: Share of the train dialogues that is held out, 0 to 1.
        settings: Settings of the prepared set; those of the tokenizer are used.

    Raises:
        FileError: No dialogue is left in the train split.
        TokenizerError: The tokenizer cannot be loaded or trained.
    """
    if settings.tokenizer is not None:
        tokenizer = DialogueTokenizer.load(locate(settings.tokenizer))
    else:
        started = time.perf_counter()
        texts = _sample(folder, blocks, buckets, valid_share, settings.tokenizer_characters)
        tokenizer = DialogueTokenizer.train(texts, settings.vocab_size, word_count=settings.word_count)
        seconds = time.perf_counter() - started
        print(
            translate(f"tokenizer trained on {sum(map(len, texts)):,} characters in {seconds:.0f} s"), file=sys.stderr
        )
    part = folder / "tokenizer.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    tokenizer.save(part)
    os.replace(part, folder / "tokenizer")


def _sample(
    folder: Path, blocks: Sequence[BlockId], buckets: int, valid_share: float, characters: int | None
) -> list[str]:
    """Return turns of the train split with about `characters` characters in total; None returns all turns.

    The turns are a random sample, because the bucket of a dialogue depends on its hash.
    """
    texts: list[str] = []
    size = 0
    for bucket in range(buckets):
        content = read_bucket(folder, blocks, bucket, valid_share)
        is_train = (content.rank == SPLITS.index("train")).tolist()
        for turns, is_train_dialogue in zip(texts_of(content.rows), is_train, strict=True):
            if is_train_dialogue:
                texts += turns
                size += sum(map(len, turns))
                if characters is not None and size >= characters:
                    return texts
    if not texts:
        raise FileError(ALL_HELD_OUT)
    return texts

"""A stage of a run: its batches, its validation dialogues, its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, pairwise

import numpy as np

from chatbot.text.dialogue import count_units
from chatbot.text.layouts import Layout
from chatbot.text.tokenizer import DialogueTokenizer
from training.data.packing import PackedData
from training.data.turn_store import Source, TurnStore, parse_source
from training.optim.schedule import schedule
from training.reporting.logs import unigram_nats
from training.settings import SettingsError, TrainSettings

REPLY_LENGTH_PERCENTILE = 99
"""t0 of the EOS floor: this percentile of the turn lengths, in tokens, on the validation split."""


class Stage:
    """Data and schedule of a stage.

    Args:
        run: Settings of the run.
        number: Index of the stage, from 0.
        tokenizer: Tokenizer of the data.
        layout: Layout of the model's dialogues.
        backward: Reverse the turns of every dialogue.

    Attributes:
        settings: Settings of the stage alone.
        name: Name of the stage in the log.
        data: Batches.
        utilisation: Share of tokens that are not padding, in the rows of the first epoch.
        steps: Optimizer steps of the whole stage.
        valid_dialogues: Token ids of the turns of the validation dialogues.
        valid_turns: For each validation dialogue, the turns that are scored: all, or only the replies if only replies
            are learnt.
        valid_units: For each validation dialogue, the number of units (`count_units`) in its scored turns.
        tokens_per_unit: Targets per unit of the validation dialogues; None without any.
        floor_start: t0 of the EOS floor, in tokens.
        unigram: nats/unit of a unigram model on the validation dialogues; None without validation dialogues.

    Raises:
        SettingsError: No turn fits into a row, the weights in --data are so small that an epoch has no dialogue, or a
            backward model is to learn only replies.
    """

    def __init__(
        self, run: TrainSettings, number: int, tokenizer: DialogueTokenizer, layout: Layout, backward: bool = False
    ):
        settings = self.settings = run.of_stage(number)
        self.name = (run.stages[number].name or f"stage {number + 1}") if run.stages else "training"
        sources = [parse_source(text) for text in settings.data]
        if backward and any(source.replies_only for source in sources):
            raise SettingsError("A backward model learns all turns; leave out :replies in --data.")
        folders = [source.folder for source in sources]
        train, valid = TurnStore(folders, "train", backward), TurnStore(folders, "valid", backward)
        self.data = PackedData(
            train,
            layout,
            settings.row_tokens,
            settings.batch_rows,
            settings.seed,
            tokenizer.pad_id or 0,
            [source.weight for source in sources],
            [source.replies_only for source in sources],
        )
        if not len(self.data.pieces):
            raise SettingsError("Every turn is longer than a row; raise --row-tokens or give other data.")
        if not self.data.rows(0):
            raise SettingsError("The weights leave no dialogue in an epoch; raise the weights in --data.")
        self.utilisation = self.data.utilisation()  # now, while the rows of the first epoch are cached
        steps = max(settings.min_steps, math.ceil(settings.epochs * len(self.data.batches(0))))
        self.steps = steps if settings.max_steps is None else min(steps, settings.max_steps)
        chosen = self._choose_valid(valid, train, sources)
        self._measure_valid(valid, chosen, sources, tokenizer)
        self.unigram: float | None = None
        self.tokens_per_unit: float | None = None
        if chosen:
            counted = [turns[part] for turns, part in zip(self.valid_dialogues, self.valid_turns, strict=True)]
            self.tokens_per_unit = sum(len(ids) + 1 for turns in counted for ids in turns) / sum(self.valid_units)
            nats = unigram_nats(train, counted, layout.end_of_turn_id, tokenizer.vocab_size)
            self.unigram = nats / sum(self.valid_units)

    def _choose_valid(self, valid: TurnStore, train: TurnStore, sources: list[Source]) -> list[int]:
        """Return the indices of the validation dialogues, and set `floor_start` from the turn lengths of their pool.

        A set of weight w < 1 contributes the share w of its validation dialogues, so that the best checkpoint is the
        best on the mixture that is trained on.
        """
        parts = zip(pairwise(valid.folder_starts.tolist()), sources, strict=True)
        pool = np.concatenate(
            [spread(start, stop, math.ceil(min(1, source.weight) * (stop - start))) for (start, stop), source in parts]
        )
        # t0 comes from all turns of the pool; without a validation split, from the turns of the training split.
        lengths = [length for index in pool for length in valid.turn_lengths(index)] or np.diff(train.turn_starts)
        self.floor_start = max(1, int(np.ceil(np.percentile(lengths, REPLY_LENGTH_PERCENTILE))))
        limit = self.settings.eval_dialogues
        return pool[spread(0, len(pool), len(pool) if limit is None else min(limit, len(pool)))].tolist()

    def _measure_valid(
        self, valid: TurnStore, chosen: list[int], sources: list[Source], tokenizer: DialogueTokenizer
    ) -> None:
        """Set the validation dialogues, the turns of each that are scored, and the number of units in these turns."""
        self.valid_dialogues: list[list[list[int]]] = []
        self.valid_turns: list[slice] = []
        self.valid_units: list[int] = []
        folders = (np.searchsorted(valid.folder_starts, chosen, side="right") - 1).tolist()
        for index, folder in zip(chosen, folders, strict=True):
            turns = valid.turns(index)
            self.valid_dialogues.append(turns)
            if sources[folder].replies_only:
                replies = slice(1, None, 2)
                self.valid_turns.append(replies)
                self.valid_units.append(count_units([tokenizer.decode(ids) for ids in turns[replies]]))
            else:
                self.valid_turns.append(slice(None))
                self.valid_units.append(int(valid.units[index]))

    def remaining(self, steps_taken: int) -> Iterator[list[list[int]]]:
        """Yield the batches that follow the first `steps_taken` steps of the stage."""
        start = 0
        for epoch in count():
            batches = self.data.batches(epoch)
            for index, rows in enumerate(batches, start):
                if index >= self.steps:
                    return
                if index >= steps_taken:
                    yield rows
            start += len(batches)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step of the stage, counted from 0."""
        return self.settings.learning_rate * schedule(step, self.steps, self.settings)


def split_rows(rows: list[list[int]], micro_batch_rows: int, rank: int, ranks: int) -> list[list[list[int]]]:
    """Return the micro-batches of a process; empty rows are added so that all processes have the same number of rows.

    Args:
        rows: Rows of the whole batch.
        micro_batch_rows: Maximum rows of a micro-batch.
        rank: Index of the process.
        ranks: Number of processes.
    """
    per_step = micro_batch_rows * ranks
    filled = rows + [[] for _ in range(-len(rows) % ranks)]
    parts = [filled[start : start + per_step] for start in range(0, len(filled), per_step)]
    return [part[rank::ranks] for part in parts]


def spread(start: int, stop: int, limit: int) -> np.ndarray:
    """Return at most `limit` evenly spaced indices from `start` to `stop` (exclusive)."""
    return np.linspace(start, stop - 1, limit).astype(int) if limit and stop > start else np.zeros(0, int)

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
"""t0 of the EOS floor: this percentile of the turn length in tokens on the validation split."""


class Stage:
    """What a stage trains on.

    Args:
        run: All stages.
        number: Which one, counted from 0.
        tokenizer: That of the data.
        layout: Of the model.
        backward: Give the turns of every dialogue in reverse order.

    Attributes:
        settings: Of the stage alone.
        data: Its batches.
        utilisation: Share of the tokens of the first epoch's rows that are not padding.
        steps: Optimizer steps of the whole stage.
        valid_dialogues: Token ids of the turns of the validation dialogues.
        valid_turns: Which turns of each count: all, or the replies where nothing else is learnt.
        valid_units: Units of those.
        floor_start: t0 of the EOS floor, in tokens.
        unigram: nats/unit of a unigram model on the validation dialogues; None without any.

    Raises:
        SettingsError: No turn of the data fits a row, or it is asked for replies that come before what they answer.
    """

    def __init__(
        self, run: TrainSettings, number: int, tokenizer: DialogueTokenizer, layout: Layout, backward: bool = False
    ):
        settings = self.settings = run.of_stage(number)
        self.name = (run.stages[number].name or f"stage {number + 1}") if run.stages else "training"
        sources = [parse_source(text) for text in settings.data]
        folders = [source.folder for source in sources]
        train, valid = TurnStore(folders, "train", backward), TurnStore(folders, "valid", backward)
        weights = [source.weight for source in sources]
        row = (settings.row_tokens, settings.batch_rows)
        replies_only = [source.replies_only for source in sources]
        if backward and any(replies_only):
            raise SettingsError("A model that goes backward learns all turns; leave out :replies in --data.")
        self.data = PackedData(train, layout, *row, settings.seed, tokenizer.pad_id, weights, replies_only)
        if not len(self.data.pieces):
            raise SettingsError("Every turn is longer than a row; raise --row_tokens or give other data.")
        if not self.data.rows(0):
            raise SettingsError("The weights leave no dialogue in an epoch; raise those of --data.")
        self.utilisation = self.data.utilisation()  # now, while the rows of the first epoch are there
        steps = math.ceil(settings.epochs * len(self.data.batches(0)))
        self.steps = steps if settings.max_steps is None else min(steps, settings.max_steps)
        self._choose_valid(valid, train, sources, layout.end_of_turn_id, tokenizer)

    def _choose_valid(
        self, valid: TurnStore, train: TurnStore, sources: list[Source], end_id: int, tokenizer: DialogueTokenizer
    ) -> None:
        """Of a set that training sees a tenth of at a time, a tenth: the best checkpoint is the best at the mixture."""
        parts = zip(pairwise(valid.folder_starts.tolist()), sources, strict=True)
        pool = np.concatenate(
            [spread(start, stop, math.ceil(min(1, source.weight) * (stop - start))) for (start, stop), source in parts]
        )
        most = self.settings.eval_dialogues
        chosen = pool[spread(0, len(pool), len(pool) if most is None else min(most, len(pool)))].tolist()
        self.valid_dialogues = [valid.turns(index) for index in chosen]
        folders = (np.searchsorted(valid.folder_starts, chosen, side="right") - 1).tolist()
        self.valid_turns = [slice(1, None, 2) if sources[n].replies_only else slice(None) for n in folders]
        self.valid_units = [
            count_units([tokenizer.decode(ids) for ids in turns[counted]])
            if sources[folder].replies_only
            else int(valid.units[index])
            for index, folder, turns, counted in zip(
                chosen, folders, self.valid_dialogues, self.valid_turns, strict=True
            )
        ]
        # t0 comes from all turns of the pool; without a validation split the training turns have to serve.
        lengths = [n for index in pool for n in valid.turn_lengths(index)] or np.diff(train.turn_starts)
        self.floor_start = max(1, int(np.ceil(np.percentile(lengths, REPLY_LENGTH_PERCENTILE))))
        self.unigram = None
        if chosen:
            counted = [turns[part] for turns, part in zip(self.valid_dialogues, self.valid_turns, strict=True)]
            nats = unigram_nats(train, counted, end_id, tokenizer.vocab_size)
            self.unigram = nats / sum(self.valid_units)

    def remaining(self, done: int) -> Iterator[list[list[int]]]:
        """The batches after `done` steps of the stage."""
        start = 0
        for epoch in count():
            batches = self.data.batches(epoch)
            for index, rows in enumerate(batches, start):
                if index >= self.steps:
                    return
                if index >= done:
                    yield rows
            start += len(batches)

    def rate(self, step: int) -> float:
        """Learning rate of a step of the stage, from 0."""
        return self.settings.learning_rate * schedule(step, self.steps, self.settings)


def split_rows(rows: list[list[int]], micro_batch_rows: int, rank: int, ranks: int) -> list[list[list[int]]]:
    """This rank's micro-batches; every rank gets as many, filled up with empty rows."""
    per_step = micro_batch_rows * ranks
    filled = rows + [[] for _ in range(-len(rows) % ranks)]
    parts = [filled[start : start + per_step] for start in range(0, len(filled), per_step)]
    return [part[rank::ranks] for part in parts]


def spread(start: int, stop: int, most: int) -> np.ndarray:
    """At most `most` places from `start` to `stop` (exclusive), evenly."""
    return np.linspace(start, stop - 1, most).astype(int) if most and stop > start else np.zeros(0, int)

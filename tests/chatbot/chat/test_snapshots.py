"""The cache of states: it finds the longest prefix and evicts the states that were not used for longest."""

from __future__ import annotations

import pytest
import torch

from chatbot.chat.bot import SNAPSHOT_BYTES, Chatbot
from chatbot.chat.snapshots import Snapshots
from chatbot.decoding.settings import ReplySettings

FIRST, SECOND, THIRD = ((1,), 0), ((2,), 1), ((3,), 0)


class Batch:
    """Stand-in for a batch of 100 bytes."""

    def nbytes(self):
        return 100

    def clone(self):
        return Batch()


@pytest.fixture
def snapshots():
    """Space for two states of 100 bytes with logits of 4 bytes."""
    return Snapshots(2 * 104)


def add(snapshots, *pieces):
    batch = Batch()
    snapshots.add(pieces, batch, torch.zeros(1, 1))
    return batch


def test_the_longest_prefix_is_found(snapshots):
    add(snapshots, FIRST)
    longer = add(snapshots, FIRST, SECOND)
    count, batch, logits = snapshots.longest((FIRST, SECOND, THIRD))
    assert (count, batch, logits.shape) == (2, longer, (1, 1))
    assert snapshots.longest((SECOND,)) == (0, None, None)
    count, copied, _ = snapshots.find((FIRST, SECOND))
    assert count == 2
    assert copied is not longer


def test_the_oldest_state_is_evicted(snapshots):
    for piece in (FIRST, SECOND, THIRD):
        add(snapshots, piece)
    assert [snapshots.longest((piece,))[0] for piece in (FIRST, SECOND, THIRD)] == [0, 1, 1]
    assert snapshots.bytes == 2 * 104


def test_a_state_that_was_used_counts_as_new(snapshots):
    add(snapshots, FIRST)
    add(snapshots, SECOND)
    snapshots.longest((FIRST,))
    add(snapshots, THIRD)
    assert [snapshots.longest((piece,))[0] for piece in (FIRST, SECOND, THIRD)] == [1, 0, 1]


def test_a_state_that_is_added_again_is_counted_once(snapshots):
    add(snapshots, FIRST)
    again = add(snapshots, FIRST)
    assert (len(snapshots), snapshots.bytes) == (1, 104)
    assert snapshots.longest((FIRST,))[1] is again


def test_the_newest_state_stays_however_large(snapshots):
    snapshots.max_bytes = 50
    add(snapshots, FIRST)
    add(snapshots, SECOND)
    assert (len(snapshots), snapshots.longest((SECOND,))[0]) == (1, 1)


def test_states_get_256_mib_or_half_of_the_weights(bot, model, tokenizer, monkeypatch):
    """The numbers of deploy/README.md."""
    weights = sum(weight.nbytes for weight in model.parameters())
    assert bot.snapshots.max_bytes == SNAPSHOT_BYTES == 256 * 2**20 > weights
    monkeypatch.setattr("chatbot.chat.bot.SNAPSHOT_BYTES", 1000)
    assert Chatbot(model, tokenizer, ReplySettings()).snapshots.max_bytes == weights // 2 > 1000

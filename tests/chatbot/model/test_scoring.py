"""Scoring of dialogues: packing by vocabulary, and a stand-in that has only the interface of `DialogueModel`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from chatbot.model import scoring
from chatbot.model.attention.tokens import dialogue_starts
from chatbot.model.scoring import pack_whole, score_dialogues, score_turns, tokens_per_row
from chatbot.text.dialogue import Sample

VOCABULARY = 64


class UniformModel:
    """Every token is equally likely; remembers the number of tokens of each call."""

    native, max_tokens, device, dtype = None, None, torch.device("cpu"), torch.float32
    config = SimpleNamespace(vocab_size=VOCABULARY, layout="dialogpt", context_tokens=100, direction="forward")

    def __init__(self):
        self.training, self.calls = True, []

    def __call__(self, input_ids, **kwargs):
        assert not self.training
        self.calls.append(input_ids.shape[1])
        return CausalLMOutputWithPast(logits=torch.zeros(*input_ids.shape, VOCABULARY))

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)


def test_a_uniform_model_costs_the_log_of_the_vocabulary_per_token_and_end(layout):
    model = UniformModel()
    dialogues = [[[5, 6, 7], [8]], [[9]]]
    nats = torch.tensor(float(VOCABULARY)).log().item()
    first, second = score_turns(model, layout, dialogues)
    assert first == pytest.approx([4 * nats, 2 * nats])
    assert second == pytest.approx([2 * nats])
    assert score_dialogues(model, layout, dialogues) == pytest.approx([6 * nats, 2 * nats])
    assert model.training  # the mode is restored


def test_progress_counts_every_dialogue_once(layout):
    counts = []
    score_turns(UniformModel(), layout, [[[5] * 60]] * 20, row_tokens=200, advance=counts.append)
    assert (sum(counts), len(counts) > 1) == (20, True)


def test_rows_are_short_where_the_vocabulary_is_large(layout, monkeypatch):
    assert tokens_per_row(8192) == 2048
    assert tokens_per_row(151_936) == 256
    dialogues = [[[5] * 60]] * 20
    whole, parts = UniformModel(), UniformModel()
    expected = score_dialogues(whole, layout, dialogues)
    monkeypatch.setattr(scoring, "MAX_ROW_LOGITS", VOCABULARY * 300)
    assert score_dialogues(parts, layout, dialogues) == pytest.approx(expected)
    assert (max(whole.calls), max(parts.calls)) == (62 * 20, 62 * 4)


def test_a_dialogue_longer_than_a_row_stays_whole():
    samples = [Sample([0] * length, [0] * length, [0] * length) for length in (3, 50, 8, 9)]
    assert pack_whole(samples, 20) == [[1], [3, 2, 0]]


def test_starts_of_packed_dialogues():
    starts = dialogue_starts(torch.tensor([[0, 0, 1, 2, 2], [4, 4, 4, 4, 4]]))
    assert starts.tolist() == [[True, False, True, True, False], [True, False, False, False, False]]

"""Deepening a checkpoint: the same logits, a continued layer pattern, and copies that learn."""

from __future__ import annotations

import pytest
import torch

from chatbot.checkpoint.folder import load_model, save
from chatbot.errors import CheckpointError
from chatbot.model.network import XianliaoForCausalLM
from tests.conftest import tiny_config
from training.deepen import _plan, deepen, main

TYPES = ("linear_elu1", "sliding_softmax") * 2


@pytest.fixture(scope="module")
def source(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("deepen") / "source"
    model = XianliaoForCausalLM(tiny_config(tokenizer, num_hidden_layers=4, layer_types=list(TYPES)))
    save(folder, model, tokenizer, {"temperature": 0.3}, {"step": 7})
    return folder


def test_a_deeper_checkpoint_gives_the_same_logits_and_its_copies_learn(source, tmp_path):
    deepen(tmp_path / "deep", source, 8)
    shallow, deep = load_model(source), load_model(tmp_path / "deep")
    assert deep.config.layer_types == list(TYPES) * 2
    ids = torch.arange(5, 35)[None]
    with torch.inference_mode():
        assert torch.equal(shallow(ids).logits, deep(ids).logits)
    deep(ids, labels=ids).loss.backward()
    for index in (1, 3, 5, 7):
        assert deep.blocks[index].feed_forward.down_proj.weight.grad is not None
    copy = deep.blocks[2].feed_forward.down_proj.weight
    assert not copy.any()
    assert copy.grad.abs().max() > 0


def test_copies_are_spread_over_the_depth():
    assert _plan(3, 3) == [(0, False), (0, True), (1, False), (1, True), (2, False), (2, True)]
    assert _plan(3, 1) == [(0, False), (1, False), (2, False), (2, True)]
    assert _plan(2, 3) == [(0, False), (0, True), (1, False), (1, True), (1, True)]


@pytest.mark.parametrize("layers", [-2, 2, 4, 5, 7])
def test_a_number_of_layers_that_breaks_the_pattern_is_refused(source, tmp_path, layers):
    with pytest.raises(CheckpointError, match="above 4 by a multiple of 2"):
        deepen(tmp_path / "deep", source, layers)


def test_the_command_keeps_decoder_settings_and_history(source, tmp_path):
    assert main([str(tmp_path / "deep"), str(source), "--layers", "6"]) == 0
    assert '"temperature": 0.3' in (tmp_path / "deep" / "generation_config.json").read_text()
    assert '"deepened_to": 6' in (tmp_path / "deep" / "training.json").read_text()

"""The compiled step computes what the model computes, row by row, and stands aside where it cannot."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from chatbot import native
from chatbot.bot import Chatbot
from chatbot.dialogue import DialogueError
from chatbot.generate import GenerationError, decode, prefill
from chatbot.model import XianliaoForCausalLM
from chatbot.native_network import NativeNetwork
from chatbot.sampling import ReplySettings, Vocabulary
from chatbot.steps import ModelSteps, make_native, start_steps
from tests.conftest import tiny_config

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here")
SHAPES = {
    "gated": {"layer_types": ["linear_gated"] * 2},
    "decay": {"layer_types": ["linear_decay"] * 2, "output_gate": True},
    "delta": {"layer_types": ["gated_delta"] * 2, "short_conv": 4},
    "window": {"layer_types": ["sliding_softmax"] * 2, "use_bias": True, "hidden_act": "gelu_new"},
    "learned": {"layer_types": ["linear_gated", "sliding_softmax"], "positions": "learned", "use_bias": True},
    "hybrid": {"layer_types": ["gated_delta", "sliding_softmax"], "short_conv": 3, "output_gate": True},
    "relu": {"layer_types": ["linear_gated"] * 2, "hidden_act": "relu", "intermediate_size": 70, "hidden_size": 36},
    "silu": {"layer_types": ["linear_gated"] * 2, "hidden_act": "silu", "num_attention_heads": 3},
}


def build(tokenizer, name: str) -> XianliaoForCausalLM:
    torch.manual_seed(1)
    changes = {"sliding_window": 16, "initializer_range": 0.15, **SHAPES[name]}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **changes)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "convolution" in name:
            parameter.data += torch.randn_like(parameter) * 0.2
    return model


@torch.inference_mode()
def both(model, ids, int8=False, read=30, rows=None):
    """Logits of native and of model steps, after a prompt whose rows are padded differently."""
    assert make_native(model, int8)
    speakers = torch.arange(ids.shape[1]).expand_as(ids) // 7 % 2
    mask = torch.ones_like(ids[:, :read])
    for row in range(1, len(ids)):
        mask[row, : 6 * row] = 0
    output = model(ids[:, :read], token_type_ids=speakers[:, :read], attention_mask=mask, use_cache=True)
    runs = [start_steps(model, output.past_key_values.clone()), ModelSteps(model, output.past_key_values)]
    results = []
    for run in runs:
        now, logits = torch.arange(len(ids)), []
        for t in range(read, ids.shape[1]):
            logits.append(run(ids[now, t], speakers[now, t]))
            if rows is not None and t == read + 5:
                run.select(rows)
                now = now[rows]
        results.append(logits)
    return results


@needs_compiler
@pytest.mark.parametrize("name", SHAPES)
def test_the_compiled_step_is_the_model(tokenizer, name):
    ids = torch.randint(3, tokenizer.vocab_size, (5, 60), generator=torch.Generator().manual_seed(0))
    for ours, reference in zip(*both(build(tokenizer, name), ids, rows=torch.tensor([4, 0, 2, 2])), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4 * reference.abs().max().item())


@needs_compiler
def test_int8_is_near(tokenizer):
    ids = torch.randint(3, tokenizer.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "intermediate_size": 512}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **shape, initializer_range=0.05)).eval()
    for ours, reference in zip(*both(model, ids, int8=True), strict=True):
        assert (ours - reference).norm() / reference.norm() < 0.06


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours_bit_for_bit(tokenizer, int8):
    model = build(tokenizer, "hybrid")
    model.token_embedding.weight.data[5] *= 50  # a loud neighbour
    make_native(model, int8)
    state = model(torch.full((1, 4), 9), use_cache=True).past_key_values
    alone = [run(torch.tensor([9]), torch.tensor([1])) for run in [start_steps(model, state)] for _ in range(6)]
    for size in (2, 3, 4, 7):
        many = state.clone()
        many.select(torch.zeros(size, dtype=torch.int64))
        run = start_steps(model, many)
        for expected in alone:
            ids = torch.full((size,), 5)
            ids[size // 2] = 9
            assert torch.equal(run(ids, torch.ones_like(ids))[size // 2], expected[0])


@needs_compiler
@torch.inference_mode()
def test_starting_leaves_the_state_as_it_was(tokenizer):
    model = build(tokenizer, "hybrid")
    make_native(model)
    state = model(torch.full((1, 20), 9), use_cache=True).past_key_values
    before = [{name: tensor.clone() for name, tensor in layer.tensors.items()} for layer in state.layers]
    run = start_steps(model, state)
    for _ in range(20):
        run(torch.tensor([9]), torch.tensor([1]))
    for layer, expected in zip(state.layers, before, strict=True):
        assert all(torch.equal(layer.tensors[name], tensor) for name, tensor in expected.items())


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
def test_a_nan_is_refused(tokenizer, int8):
    model = build(tokenizer, "gated")
    state = model(torch.full((1, 4), 9), use_cache=True).past_key_values
    model.blocks[0].feed_forward.up_proj.weight.data[3, 3] = math.nan
    model.native = None
    if not int8:
        make_native(model)
    else:
        model.token_embedding.weight.data[7] = math.nan
        make_native(model, int8=True)
    start = torch.zeros(1, tokenizer.vocab_size)
    start[0, 7] = 30
    with pytest.raises(GenerationError, match="not a number"):
        list(decode(model, state, start, [1], ReplySettings("greedy"), Vocabulary(2, ()), [0]))


@needs_compiler
def test_replies_are_those_of_the_model(model, tokenizer, layout):
    prompts = [
        layout.prompt([tokenizer.encode(turn) for turn in turns], 64) for turns in (["你好"], ["今天", "天气", "好"])
    ]
    replies = []
    for compiled in (True, False):
        state, logits = prefill(model, prompts, tokenizer.pad_id)
        model.native = None
        assert not compiled or make_native(model)
        settings = ReplySettings("greedy", floor_start_tokens=20, floor_delta_tokens=4)
        *_, drafts = decode(model, state, logits, [1, 1], settings, Vocabulary(tokenizer.sep_id, (0, 1)), [0, 1])
        replies.append([draft.token_ids for draft in drafts])
    model.native = None
    assert replies[0] == replies[1]


@needs_compiler
def test_learned_positions_end_as_they_do_in_the_model(tokenizer):
    """Beyond them the compiled step would read foreign memory."""
    model = build(tokenizer, "learned")
    model.config.max_position_embeddings = 24
    model.position_embedding = torch.nn.Embedding(24, 32)
    for compiled in (True, False):
        model.native = None
        assert not compiled or make_native(model)
        with torch.inference_mode():
            state = model(torch.full((1, 22), 9), use_cache=True).past_key_values
            run = start_steps(model, state)
            for _ in range(2):
                run(torch.tensor([9]), torch.tensor([1]))
            with pytest.raises(DialogueError, match="24 positions"):
                run(torch.tensor([9]), torch.tensor([1]))


@needs_compiler
def test_a_copy_of_the_model_starts_without(tokenizer):
    model = build(tokenizer, "gated")
    make_native(model)
    assert copy.deepcopy(model).native is None
    assert pickle.loads(pickle.dumps(model.native)) is None


def test_other_mixers_and_machines_without_a_compiler_use_the_model(tokenizer, monkeypatch, tmp_path):
    softmax = XianliaoForCausalLM(tiny_config(tokenizer, layer_types=["softmax", "linear_gated"]))
    assert not make_native(softmax)
    assert isinstance(start_steps(softmax, softmax.new_state()), ModelSteps)
    plain = build(tokenizer, "gated")
    for change in ({"XIANLIAO_NATIVE": "0"}, {"PATH": str(tmp_path)}, {"XDG_CACHE_HOME": "/dev/null/nowhere"}):
        native.library.cache_clear()
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setenv(name, value)
            assert not NativeNetwork.supports(plain)
    native.library.cache_clear()


@needs_compiler
def test_a_failed_build_is_no_failure(monkeypatch, tmp_path):
    (tmp_path / "broken.c").write_text("this is not C")
    monkeypatch.setattr(native, "SOURCE", tmp_path / "broken.c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    assert native.library() is None
    assert list((tmp_path / "xianliao").iterdir()) == []
    native.library.cache_clear()


@needs_compiler
def test_int8_is_a_dtype_of_the_bot(checkpoint, monkeypatch):
    bot = Chatbot.from_pretrained(checkpoint, dtype="int8")
    assert bot.model.native.int8
    assert bot.reply(["你好"], seed=3) == bot.reply(["你好"], seed=3)
    monkeypatch.setenv("XIANLIAO_NATIVE", "0")
    native.library.cache_clear()
    with pytest.warns(UserWarning, match="decoding in float32"):
        assert Chatbot.from_pretrained(checkpoint, dtype="int8").model.native is None
    native.library.cache_clear()

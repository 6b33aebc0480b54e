"""The compiled step computes what the model computes, row by row, and stands aside where it cannot."""

from __future__ import annotations

import copy
import ctypes
import math
import pickle
import shutil
import subprocess

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.batch import TorchBatch, make_native, start_batch
from chatbot.decoding.candidates import GenerationError
from chatbot.decoding.loop import decode, prefill
from chatbot.decoding.native_batch import NativeNetwork
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.slots import INITIAL_SLOTS, NativeSlots
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.model.network import XianliaoForCausalLM
from chatbot.native import library as native
from chatbot.text.dialogue import DialogueError
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
    "elu1": {"layer_types": ["linear_elu1", "sliding_softmax"], "short_conv": 4, "output_gate": True},
    "elu1 rotated": {"layer_types": ["linear_elu1"] * 2, "linear_rope": True},
    "elu1 without positions": {"layer_types": ["linear_elu1"] * 2, "positions": "none"},
}


@needs_compiler
@pytest.mark.slow
def test_the_best_build_of_this_processor_is_the_one_used(tmp_path):
    """A source that compiles only without the wide instructions would be used, silently and several times slower."""
    compiler = next(path for name in ("cc", "gcc", "clang") if (path := shutil.which(name)))
    for target in native.TARGETS:
        options = [*native.FLAGS, *target, "-shared", "-fPIC", "-o", str(tmp_path / "probe.so")]
        probe = subprocess.run([compiler, *options, "-x", "c", "-"], input=b"int f;", capture_output=True, check=False)
        if probe.returncode == 0:  # the first that the compiler knows
            built = subprocess.run([compiler, *options, str(native.SOURCE), "-lm"], capture_output=True, check=False)
            assert built.returncode == 0, built.stderr.decode()
            return
    pytest.fail("no option works")


def build(tokenizer, name: str) -> XianliaoForCausalLM:
    torch.manual_seed(1)
    changes = {"sliding_window": 16, "initializer_range": 0.15, **SHAPES[name]}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **changes)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "convolution" in name:
            parameter.data += torch.randn_like(parameter) * 0.2
    return model


@torch.inference_mode()
def native_and_model_logits(model, ids, int8=False, rows=None):
    """Logits of native and of model steps: rows of different length, single tokens, then rows chosen anew."""
    assert make_native(model, int8)
    speakers = torch.arange(ids.shape[1]).expand_as(ids) // 7 % 2
    starts = [30 - 6 * row for row in range(len(ids))]
    results = []
    for run in (start_batch(model, len(ids)), TorchBatch(model, len(ids))):
        now = torch.arange(len(ids))
        parts = [[values[row, :end].tolist() for row, end in enumerate(starts)] for values in (ids, speakers)]
        logits = [run.read(*parts)]
        for t in range(30, ids.shape[1]):
            logits.append(run(ids[now, t], speakers[now, t]))
            if rows is not None and t == 35:
                run.select(rows)
                now = now[rows]
        logits.append(run.read([[5, 6]] * len(now), [[0, 0]] * len(now)))
        results.append(logits)
    return results


@needs_compiler
@pytest.mark.parametrize("name", SHAPES)
def test_the_compiled_step_is_the_model(tokenizer, name):
    ids = torch.randint(3, tokenizer.vocab_size, (5, 60), generator=torch.Generator().manual_seed(0))
    for ours, reference in zip(
        *native_and_model_logits(build(tokenizer, name), ids, rows=torch.tensor([4, 0, 2, 2])), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4 * reference.abs().max().item())


@needs_compiler
@pytest.mark.parametrize("largest", [False, True])
def test_int8_is_near(tokenizer, largest):
    """`largest`: every weight is rounded to 127 or -127, so that sums of a few products are as large as they can be."""
    ids = torch.randint(3, tokenizer.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "intermediate_size": 512}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **shape, initializer_range=0.05)).eval()
    for parameter in model.blocks.parameters() if largest else ():
        if parameter.ndim == 2:
            parameter.data = 0.05 * parameter.data.sign()
    for ours, reference in zip(*native_and_model_logits(model, ids, int8=True), strict=True):
        assert (ours - reference).norm() / reference.norm() < 0.06


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours_bit_for_bit(tokenizer, int8):
    model = build(tokenizer, "hybrid")
    model.token_embedding.weight.data[5] *= 50  # a loud neighbour
    make_native(model, int8)
    alone = start_batch(model)
    expected = [alone(torch.tensor([9]), torch.tensor([1])) for _ in range(8)]
    for size in (2, 3, 4, 5, 6, 7, 12, 17):
        run = start_batch(model, size)
        for value in expected:
            ids = torch.full((size,), 5)
            ids[size // 2] = 9
            assert torch.equal(run(ids, torch.ones_like(ids))[size // 2], value[0])


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
@torch.inference_mode()
def test_the_parts_in_which_a_row_is_read_change_no_bit(tokenizer, int8):
    model = build(tokenizer, "elu1")
    make_native(model, int8)
    ids = torch.randint(3, tokenizer.vocab_size, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = start_batch(model).read([ids], [[1] * 200])
    for sizes in ([1] * 200, [63, 64, 65, 8], [130, 70]):
        run, start = start_batch(model), 0
        for size in sizes:
            logits = run.read([ids[start : start + size]], [[1] * size])
            start += size
        assert torch.equal(logits, whole)
    reference = start_batch(model, 3)
    rows = [ids[:90], ids, ids[:5]]
    assert torch.equal(reference.read(rows, [[1] * len(row) for row in rows])[1], whole[0])


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
@torch.inference_mode()
def test_threads_change_no_bit(tokenizer, int8):
    model = build(tokenizer, "hybrid")
    make_native(model, int8)
    draw = torch.Generator().manual_seed(0)
    lengths = [1, 90, 3, 1, 1, 7, 1, 30, 2, 1]
    rows = [torch.randint(3, tokenizer.vocab_size, (length,), generator=draw).tolist() for length in lengths]
    results = []
    threads = ctypes.c_int64.in_dll(native.library(), "xianliao_threads")
    before = threads.value
    for threads.value in (1, 2, 3, 7, 100):
        run = start_batch(model, len(rows))
        logits = [run.read(rows, [[1] * len(row) for row in rows])]
        logits += [run(torch.full((len(rows),), 9), torch.ones(len(rows), dtype=torch.int64)) for _ in range(3)]
        results.append(torch.stack(logits))
    threads.value = before
    assert all(torch.equal(logits, results[0]) for logits in results)


@pytest.mark.parametrize("kind", ["compiled", "model"])
@torch.inference_mode()
def test_what_cannot_be_read_is_refused_before_it_touches_memory(tokenizer, kind):
    model = build(tokenizer, "hybrid")
    if kind == "compiled" and not make_native(model):
        pytest.skip("no C compiler here")
    for ids, speakers in ([tokenizer.vocab_size], [0]), ([-1], [0]), ([5], [2]), ([5], [-1]):
        with pytest.raises(IndexError):
            start_batch(model).read([ids], [speakers])
    if kind == "compiled":
        run = start_batch(model)
        for ids, speakers in ([[5], [6]], [[0], [0]]), ([[]], [[]]), ([[5, 6]], [[0]]):
            with pytest.raises((ValueError, IndexError)):
                run.read(ids, speakers)
        for ids in torch.tensor([5, 5]), torch.tensor([5], dtype=torch.int32):
            with pytest.raises((ValueError, IndexError)):
                run(ids, torch.zeros_like(ids))


@needs_compiler
@torch.inference_mode()
def test_slots_refuse_what_they_cannot_read(tokenizer):
    """One function reads for all batches, so slots have the same checks; a slot must exist and be named once."""
    slots = NativeSlots(compiled(tokenizer, "learned").native)
    slot = slots.enter(None)
    logits = slots.read_rows([slot], [[5, 6]], [[0, 0]])
    assert torch.equal(logits, start_batch(compiled(tokenizer, "learned")).read([[5, 6]], [[0, 0]]))
    size = tokenizer.vocab_size
    for rows, ids, speakers in (
        ([slot], [[size]], [[0]]),
        ([slot], [[-1]], [[0]]),
        ([slot], [[5]], [[2]]),
        ([slot], [[5]], [[-1]]),
        ([slot], [[5, 6]], [[0]]),
        ([slot], [[]], [[]]),
        ([slot, slot], [[5], [6]], [[0], [0]]),
        ([slot], [[5], [6]], [[0], [0]]),
        ([INITIAL_SLOTS], [[5]], [[0]]),
        ([-1], [[5]], [[0]]),
    ):
        with pytest.raises((ValueError, IndexError)):
            slots.read_rows(rows, ids, speakers)
    with pytest.raises(DialogueError, match="positions"):
        slots.read_rows([slot], [[5] * 5000], [[0] * 5000])
    assert slots.positions[slot] == 2  # a refused call changes no state


@needs_compiler
@torch.inference_mode()
def test_slots_grow_in_place_and_keep_their_dialogues(tokenizer):
    """Tensors that grow one by one never need twice the memory of all slots."""
    slots = NativeSlots(compiled(tokenizer, "hybrid").native)
    before = [tensor for layer in slots.layers for tensor in layer.values()]
    rows = [slots.enter(None) for _ in range(INITIAL_SLOTS)]
    slots.read_rows(rows, [[5, 6 + row] for row in rows], [[0, 0] for _ in rows])
    more = [slots.enter(None) for _ in range(INITIAL_SLOTS + 1)]  # grows twice
    after = [tensor for layer in slots.layers for tensor in layer.values()]
    assert all(old is new for old, new in zip(before, after, strict=True))
    assert {len(tensor) for tensor in after} == {len(slots.positions)} == {4 * INITIAL_SLOTS}
    logits = slots.read_rows([*rows, *more], [[7]] * 2 * INITIAL_SLOTS + [[7]], [[1]] * (2 * INITIAL_SLOTS + 1))
    for row in (*rows, more[-1]):
        alone = start_batch(compiled(tokenizer, "hybrid"))
        ids = [5, 6 + row, 7] if row in rows else [7]
        expected = alone.read([ids], [[0, 0, 1][-len(ids) :]])
        assert torch.equal(logits[[*rows, *more].index(row)], expected[0])


@needs_compiler
@torch.inference_mode()
def test_a_copy_goes_its_own_way(tokenizer):
    run = start_batch(compiled(tokenizer, "hybrid"))
    run.read([[9] * 20], [[1] * 20])
    other, nine, speaker = run.clone(), torch.tensor([9]), torch.tensor([1])
    first = run(nine, speaker)
    for _ in range(20):
        run(torch.tensor([5]), speaker)
    assert torch.equal(other(nine, speaker), first)
    assert other.nbytes() == run.nbytes() > 0


def compiled(tokenizer, name):
    model = build(tokenizer, name)
    assert make_native(model)
    return model


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
def test_a_nan_is_refused(tokenizer, int8):
    model = build(tokenizer, "gated")
    if int8:
        model.token_embedding.weight.data[7] = math.nan
    else:
        model.blocks[0].feed_forward.up_proj.weight.data[3, 3] = math.nan
    make_native(model, int8)
    start = torch.zeros(1, tokenizer.vocab_size)
    start[0, 7] = 30
    with pytest.raises(GenerationError, match="not a number"):
        list(decode(start_batch(model), start, [1], ReplySettings("greedy"), Vocabulary(2, ()), [0]))


@needs_compiler
def test_replies_are_those_of_the_model(model, tokenizer, layout):
    prompts = [
        layout.prompt([tokenizer.encode(turn) for turn in turns], 64) for turns in (["你好"], ["今天", "天气", "好"])
    ]
    replies = []
    for compiled in (True, False):
        model.native = None
        assert not compiled or make_native(model)
        steps, logits = prefill(model, prompts)
        settings = ReplySettings("greedy", floor_start_tokens=20, floor_delta_tokens=4)
        *_, drafts = decode(steps, logits, [1, 1], settings, Vocabulary(tokenizer.sep_id, (0, 1)), [0, 1])
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
            run = start_batch(model)
            run.read([[9] * 22], [[1] * 22])
            for _ in range(2):
                run(torch.tensor([9]), torch.tensor([1]))
            with pytest.raises(DialogueError, match="24 positions"):
                run(torch.tensor([9]), torch.tensor([1]))
            with pytest.raises(DialogueError, match="24 positions"):
                start_batch(model).read([[9] * 25], [[1] * 25])


@needs_compiler
def test_a_copy_of_the_model_starts_without(tokenizer):
    model = build(tokenizer, "gated")
    make_native(model)
    assert copy.deepcopy(model).native is None
    assert pickle.loads(pickle.dumps(model.native)) is None


def test_other_mixers_and_machines_without_a_compiler_use_the_model(tokenizer, monkeypatch, tmp_path):
    softmax = XianliaoForCausalLM(tiny_config(tokenizer, layer_types=["softmax", "linear_gated"]))
    assert not make_native(softmax)
    assert isinstance(start_batch(softmax), TorchBatch)
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
    with pytest.warns(UserWarning, match="using float32 instead"):
        assert Chatbot.from_pretrained(checkpoint, dtype="int8").model.native is None
    native.library.cache_clear()

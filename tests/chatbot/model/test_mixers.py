"""Every mixer: its forms agree, states continue, padding and packing change nothing, nothing leaks."""

from __future__ import annotations

import ctypes
import time

import pytest
import torch

from chatbot.model.attention import MIXERS, build_mixer, fused
from chatbot.model.attention.convolution import ShortConvolution
from chatbot.model.attention.delta import chunked as delta_chunked
from chatbot.model.attention.delta import naive as delta_naive
from chatbot.model.attention.experimental.synthesizer import FactoredDenseLogits, factors
from chatbot.model.attention.linear import FEATURE_MAPS
from chatbot.model.attention.recurrence import chunked, naive, recurrence
from chatbot.model.attention.softmax import windowed
from chatbot.model.attention.tokens import Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.layer_types import LAYER_TYPES
from chatbot.model.state import MixerState
from chatbot.native import library as native

WIDTH = 24
LENGTHS = (1, 63, 64, 65, pytest.param(500, marks=pytest.mark.slow))
VARIANTS = {"synthesizer_all": "synthesizer_mixture", "convolution": "linear_gated"}
VARIANTS |= {f"{name} rotated": name for name in LAYER_TYPES if name.removeprefix("linear_") in FEATURE_MAPS}
every_mixer = pytest.mark.parametrize("name", [*LAYER_TYPES, *VARIANTS])


def mixer(name: str, most: int = 512, seed: int = 0) -> torch.nn.Module:
    """A mixer with weights that matter, in evaluation mode."""
    torch.manual_seed(seed)
    parts = ["dense", "random", "fact_dense", "fact_random", "dot_product"] if name == "synthesizer_all" else None
    config = XianliaoConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=8,
        intermediate_size=8,
        layer_types=[VARIANTS.get(name, name)],
        chunk_size=64,
        max_position_embeddings=most,
        sliding_window=40,
        taylor_key_dim=4,
        synthesizer_mixture=parts,
        linear_rope=name.endswith("rotated"),
        output_gate=name in ("linear_gated", "softmax"),
        short_conv=4 if name in ("linear_gated", "gated_delta", "softmax", "synthesizer_dense") else 0,
    )
    module = ShortConvolution(WIDTH, 4) if name == "convolution" else build_mixer(config, 0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4 if parameter.ndim < 3 else 0.8)
    return module.eval()


def hidden(length: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def plain(length: int, start: int = 0, batch: int = 2) -> Tokens:
    return Tokens(positions=torch.arange(start, start + length).expand(batch, -1))


def run(module, x, tokens=None, state=None, form="auto"):
    tokens = plain(x.shape[1], batch=len(x)) if tokens is None else tokens
    return module(x, tokens, state) if isinstance(module, ShortConvolution) else module(x, tokens, state, form)


def in_parts(module, x, sizes):
    state, outputs, start = MixerState(), [], 0
    for part in x.split(sizes, 1):
        outputs.append(run(module, part, plain(part.shape[1], start, len(x)), state))
        start += part.shape[1]
    return torch.cat(outputs, 1)


def close(a, b, tolerance=1e-4, least=1e-3):
    """Check the largest difference relative to the largest value, or to `least` if all values are smaller."""
    scale = b.abs().max().clamp_min(least)
    assert (a - b).abs().max() / scale < tolerance


def test_every_name_has_a_mixer():
    assert set(MIXERS) == set(LAYER_TYPES)


def outputs_and_gradients(name, length, form, dtype):
    module, x = mixer(name).to(dtype), hidden(length).to(dtype).requires_grad_()
    output = in_parts(module, x, 1) if form == "step" else run(module, x, form=form)
    (output * hidden(length, seed=2)).sum().backward()
    return [output.detach(), x.grad, *(parameter.grad for parameter in module.parameters() if parameter.requires_grad)]


@every_mixer
@pytest.mark.parametrize("length", LENGTHS)
def test_forms_agree_in_values_and_gradients(name, length):
    """float64 shows that they are the same function, float32 (whose kernels differ) that rounding stays small."""
    for dtype in (torch.float64, torch.float32):
        exact = dtype == torch.float64
        naive, *others = (outputs_and_gradients(name, length, form, dtype) for form in ("naive", "auto", "step"))
        # the chunked form's gradient of the gates cancels in fp32: 2e-4 over 500 tokens, more or less by processor;
        # a zero gradient differs by the rounding of large ones
        tolerance = 1e-10 if exact else 1e-4 if length < 500 else 5e-4
        least = 1e-3 if exact else 1e-3 * max(1, *(gradient.abs().max().item() for gradient in naive[1:]))
        for other in others:
            for value, reference in zip(other, naive, strict=True):
                close(value, reference, tolerance, least)


@every_mixer
@torch.no_grad()
def test_a_saved_state_continues_with_several_tokens(name):
    module, x = mixer(name), hidden(200)
    whole = run(module, x)
    for sizes in ([64, 136], [1, 63, 136], [130, 1, 1, 68], [10, 100, 90]):
        close(in_parts(module, x, sizes), whole, 1e-5)


@every_mixer
@torch.no_grad()
def test_padding_changes_nothing(name):
    module, x = mixer(name), hidden(100)
    alone = run(module, x)
    garbage = hidden(9, seed=5) * 3
    for left in (True, False):
        padded = torch.cat([garbage, x] if left else [x, garbage], 1)
        columns = torch.arange(109).expand(2, -1)
        keep = columns >= 9 if left else columns < 100
        tokens = Tokens(keep, positions=(keep.cumsum(1) - 1).clamp_min(0))
        for form in ("auto", "naive"):
            close(run(module, padded, tokens, form=form)[keep].view(2, 100, -1), alone, 1e-5)
        state = MixerState()  # the states agree too: so do the next tokens
        run(module, padded, tokens, state)
        joined = run(module, torch.cat([x, hidden(3, seed=6)], 1))
        close(run(module, hidden(3, seed=6), plain(3, 100), state), joined[:, 100:], 1e-5)


@every_mixer
@torch.no_grad()
def test_rows_continue_with_parts_of_different_length(name):
    """A batch of conversations: the shorter new turn is padded on the left, after a state."""
    module, x = mixer(name), hidden(90)
    whole = run(module, x)
    state = MixerState()
    run(module, x[:, :60], state=state)
    keep = torch.ones(2, 30, dtype=torch.bool)
    keep[1, :10] = False
    new = torch.stack([x[0, 60:], torch.cat([hidden(10)[0], x[1, 60:80]])])
    output = run(module, new, Tokens(keep, positions=59 + keep.cumsum(1)), state)
    close(output[0], whole[0, 60:], 1e-5)
    close(output[1, 10:], whole[1, 60:80], 1e-5)
    close(run(module, x[1:, 80:81].repeat(2, 1, 1), plain(1, 80), state)[1], whole[1, 80:81], 1e-5)


@every_mixer
@torch.no_grad()
def test_packed_dialogues_equal_separate_ones(name):
    module, x = mixer(name), hidden(200, batch=1)
    sizes = [13, 51, 6, 1, 129]
    segments = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))[None]
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    alone = torch.cat([run(module, part) for part in x.split(sizes, 1)], 1)
    for form in ("auto", "naive"):
        close(run(module, x, Tokens(None, segments, positions), form=form), alone, 1e-5)


@every_mixer
@pytest.mark.parametrize("planted", [1e4, float("nan")])
@torch.no_grad()
def test_naive_and_step_do_not_see_the_future_bit_for_bit(name, planted):
    module = mixer(name)
    for form in ("naive", "step"):
        before, after = (
            in_parts(module, x, 1) if form == "step" else run(module, x, form=form)
            for x in (hidden(40), hidden(40).index_fill(1, torch.tensor([25]), planted))
        )
        assert torch.equal(before[:, :25], after[:, :25])
        assert not torch.equal(before[:, 25:], after[:, 25:])


@every_mixer
@torch.no_grad()
def test_the_parallel_form_does_not_see_the_future(name):
    module = mixer(name)
    before, after = (run(module, x) for x in (hidden(150), hidden(150).index_fill(1, torch.tensor([100]), 1e4)))
    close(after[:, :100], before[:, :100], 1e-6)
    assert not torch.equal(before[:, 100:], after[:, 100:])
    if name == "convolution" or name.startswith(("softmax", "synthesizer", "sliding")):
        return
    planted = hidden(150).index_fill(1, torch.tensor([128]), float("nan"))  # 0 * nan is nan: in a later chunk only
    close(run(module, planted)[:, :128], before[:, :128], 1e-6)


def test_efficient_attention_as_published_fails_the_leak_test():
    """Equation 3 of arXiv 1812.01243 normalises each key channel over all positions, the future included."""

    def published(q, k, v):
        return torch.einsum("bihk,bjhk,bjhv->bihv", q.softmax(-1), k.softmax(1), v)

    q, k, v = (torch.randn(1, 30, 2, 4) for _ in range(3))
    before = published(q, k, v)
    k[:, 25] = 1e4
    assert not torch.allclose(published(q, k, v)[:, :25], before[:, :25], atol=1e-3)


@pytest.mark.parametrize("name", LAYER_TYPES)
@torch.no_grad()
def test_bf16_stays_finite_over_4096_tokens(name):
    module = mixer(name, most=4096).bfloat16()
    state = MixerState()
    output = module(hidden(4096, batch=1).bfloat16(), plain(4096, batch=1), state)
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()
    for kind, tensor in state.tensors.items():
        assert tensor.dtype == torch.float32 or kind in ("inputs", "keys", "values", "positions", "keep", "columns")


@every_mixer
def test_autocast_changes_little(name):
    """Training in bf16 on a CPU: matrix products in bf16, sums over time in fp32."""
    module, x, tokens = mixer(name), hidden(130), plain(130)
    tokens = Tokens(segment_ids=(torch.arange(130) // 50).expand(2, -1), positions=tokens.positions)
    results = []
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = module(x, tokens)
        output = (output[0] if isinstance(output, tuple) else output).float()
        (output * hidden(130, seed=2)).sum().backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        results.append((output.detach(), torch.cat(gradients)))
    for exact, rough in zip(*results, strict=True):
        assert (exact - rough).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize("name", [name for name in LAYER_TYPES if name not in ("softmax",)])
@torch.no_grad()
def test_the_state_does_not_grow(name):
    module = mixer(name)
    sizes = []
    state = MixerState()
    for start in (0, 100):
        run(module, hidden(100), plain(100, start), state)
        sizes.append(sum(tensor.numel() for tensor in state.tensors.values()))
    assert sizes[0] == sizes[1] or name.startswith("synthesizer")


@pytest.mark.parametrize("name", [name for name in LAYER_TYPES if name.startswith("synthesizer")])
@torch.no_grad()
def test_a_synthesizer_refuses_more_than_it_has_positions_for(name):
    module = mixer(name, most=64)
    run(module, hidden(64))
    with pytest.raises(ValueError, match="dialogue has 65 tokens, but this Synthesizer has only 64 positions"):
        run(module, hidden(65))


@pytest.mark.parametrize("length", [24, 64, 1024, 7])
@torch.no_grad()
def test_factored_rows_hold_every_product_of_two_factors_once(length):
    """Column n is first[n mod a] * second[n // a]; tiling both factors would repeat columns (12 of 24 differ)."""
    a, b = factors(length)
    assert (a * b, a <= b) == (length, True)
    config = XianliaoConfig(hidden_size=WIDTH, num_attention_heads=2, head_dim=8, max_position_embeddings=length)
    logits = FactoredDenseLogits(config)
    torch.nn.init.zeros_(logits.factor_weight)  # leaves the biases: the factors themselves
    torch.nn.init.normal_(logits.factor_bias)
    torch.nn.init.zeros_(logits.hidden_proj.weight)
    rows = logits.rows(hidden(1, batch=1), torch.zeros(1, 1, dtype=torch.int64))[0, 0]
    for head, bias in zip(rows, logits.factor_bias, strict=True):
        first, second = bias[:a].tolist(), bias[a:].tolist()
        assert head.tolist() == pytest.approx([first[n % a] * second[n // a] for n in range(length)])
        assert len(set(head.tolist())) == length


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
def test_the_compiled_convolution_is_the_convolution(monkeypatch, packed):
    segments = torch.stack([torch.arange(70) // 9, torch.arange(70) // 2]) if packed else None
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(native, "library", native.library if compiled else lambda: None)
        module, x = mixer("convolution"), hidden(70).requires_grad_()
        output = run(module, x, Tokens(None, segments))
        output.sin().sum().backward()
        results.append([output, x.grad, module.weight.grad])
    for value, reference in zip(*results, strict=True):
        close(value, reference, 1e-5)


def test_the_convolution_starts_as_the_identity():
    module = ShortConvolution(WIDTH, 4)
    module.init_weights(0.02)
    assert torch.equal(run(module, hidden(9)), hidden(9))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_fused_kernels_get_what_they_expect(monkeypatch, packed, with_state):
    """fla's calling convention, checked with stand-ins that run our definitions on what they are given."""

    def simple_gla(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens=None):
        assert (scale, output_final_state) == (1.0, True)
        return by_dialogue(naive, (q, k, v, g), initial_state, cu_seqlens)

    def delta(q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens=None):
        assert (scale, output_final_state) == (1.0, True)
        return by_dialogue(delta_naive, (q, k, v, g, beta), initial_state, cu_seqlens)

    def by_dialogue(form, tensors, initial, bounds):
        if bounds is None:
            return form(*tensors, state=initial)
        outputs, states = [], []
        for index, (a, b) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            before = None if initial is None else initial[index : index + 1]
            output, state = form(*(x[:, a:b] for x in tensors), state=before)
            outputs.append(output)
            states.append(state)
        return torch.cat(outputs, 1), torch.cat(states)

    modules = {
        "fla.ops.simple_gla": type("module", (), {"chunk_simple_gla": staticmethod(simple_gla)}),
        "fla.ops.gated_delta_rule": type("module", (), {"chunk_gated_delta_rule": staticmethod(delta)}),
    }
    monkeypatch.setattr(fused, "import_module", modules.__getitem__)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 50, 3, 8) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    g, beta = -torch.rand(2, 50, 3), torch.rand(2, 50, 3)
    state = torch.randn(2, 3, 8, 8) if with_state else None
    ids = torch.stack([torch.arange(50) // 17, torch.arange(50) // 50]) if packed else None
    for ours, theirs, tensors in (
        (chunked, fused.gated_sum, (q, k, v, g)),
        (delta_chunked, fused.gated_delta_rule, (q, k, v, g, beta)),
    ):
        for value, reference in zip(theirs(*tensors, ids, state), ours(*tensors, ids, state), strict=True):
            close(value, reference)


def test_fused_kernels_are_for_cuda_tensors_only(monkeypatch):
    monkeypatch.setattr(fused, "installed", lambda: True)
    assert not fused.available(torch.ones(1))
    monkeypatch.setattr(fused, "available", lambda x: True)
    monkeypatch.setattr(fused, "gated_sum", lambda *tensors: tensors)
    q = torch.ones(1, 3, 1, 2)
    g = torch.zeros(1, 3, 1)
    assert recurrence(q, q, q, g) == (q, q, q, g, None, None)  # and are used where they are available


def test_a_window_beyond_the_text_takes_memory_for_the_text_only():
    """A window of 65,536 tokens would need a mask of 34 GB, were its blocks not cut to the text."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 50, 2, 8) for _ in range(3))
    torch.testing.assert_close(windowed(q, k, v, 1 << 16, None), windowed(q, k, v, 64, None))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
def test_the_compiled_convolution_does_not_depend_on_the_number_of_threads(packed):
    """Bit for bit, forwards and backwards: a channel is summed by one thread, in the order of the tokens."""
    threads = ctypes.c_int64.in_dll(native.library(), "xianliao_threads")
    before, results, seconds = threads.value, [], []
    torch.manual_seed(0)
    x, dy, taps = torch.randn(2, 2048, 200), torch.randn(2, 2048, 200), torch.randn(4, 200)
    segments = torch.randint(0, 3, (2, 2048)).sort(-1).values if packed else None
    try:
        for threads.value in (1, 3):
            durations = []
            for _ in range(5):
                y, dx, dw = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(taps)
                start = time.thread_time()  # of this thread alone
                native.call("xianliao_convolve", [x, segments, taps, y], [*x.shape, 4])
                native.call("xianliao_convolve_backward", [x, dy, segments, taps, dx, dw], [*x.shape, 4])
                durations.append(time.thread_time() - start)
            seconds.append(min(durations))
            results.append((y, dx, dw))
    finally:
        threads.value = before
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)
    assert seconds[1] < 0.8 * seconds[0]  # the other threads have their share

"""Feature maps and denominators where rounding could destroy them."""

from __future__ import annotations

import pytest
import torch

from chatbot.decoding.batch import TorchBatch, make_native, start_batch
from chatbot.model.attention import build_mixer
from chatbot.model.attention.linear import MIN_DENOMINATOR, TAYLOR1_MARGIN, divide, elu1, taylor1
from chatbot.model.attention.recurrence import chunked, chunked_fast, naive, step
from chatbot.model.attention.tokens import Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.network import XianliaoForCausalLM
from chatbot.native import library as native
from tests.conftest import tiny_config


def test_elu1_keeps_its_digits_far_below_zero():
    """elu(x) + 1 in fp32 is off by 3e-4 at -9 and exactly 0 from -17.4 on."""
    x = torch.linspace(-60, 10, 701)
    exact = torch.where(x.double() < 0, x.double().exp(), x.double() + 1)
    assert ((elu1(x).double() - exact).abs() / exact).max() < 1e-5
    assert (elu1(torch.tensor([-80.0])) > 0).all()


def test_elu1_has_the_gradients_of_elu():
    x = (torch.arange(-50, 51, dtype=torch.float64) / 6).requires_grad_()  # with 0, where the slope is 1
    (ours,) = torch.autograd.grad(elu1(x).sum(), x, create_graph=True)
    (theirs,) = torch.autograd.grad(torch.nn.functional.elu(x).sum(), x)
    torch.testing.assert_close(ours, theirs)
    torch.autograd.gradgradcheck(elu1, x.detach()[:50].requires_grad_())


def elu1_mixer(level: float) -> torch.nn.Module:
    """Linear attention whose queries and keys are about `level`."""
    torch.manual_seed(0)
    config = XianliaoConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=8,
        layer_types=["linear_elu1"],
        use_bias=True,
        short_conv=0,
        output_gate=False,
    )
    mixer = build_mixer(config, 0)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        mixer.qkv_proj.bias[:32] = level
    return mixer.eval()


@pytest.mark.parametrize("form", ["auto", "naive"])
@pytest.mark.parametrize("level", [-9.0, -16.0, -20.0, -30.0])
@torch.no_grad()
def test_a_head_with_small_features_is_still_a_mean(form, level):
    """The scale of the features cancels in the quotient, however small they are."""
    x = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(1))
    mixer = elu1_mixer(level)
    exact = elu1_mixer(level).double()(x.double(), Tokens(), form="naive")
    output = mixer(x, Tokens(), form=form)
    torch.testing.assert_close(output.double(), exact, rtol=1e-3, atol=1e-4)
    values = mixer.project(x, Tokens(), None)[2]
    q, k = (elu1(part).double() for part in mixer.project(x, Tokens(), None)[:2])
    weights = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    mean = torch.einsum("bhij,bjhv->bihv", weights / weights.sum(-1, keepdim=True), values.double())
    torch.testing.assert_close(output, mixer.finish(x, mean.float()), rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
@pytest.mark.parametrize("linear_rope", [False, True])
@pytest.mark.parametrize("level", [0.0, -16.0, -20.0])
@torch.no_grad()
def test_the_compiled_step_agrees_where_features_are_small(tokenizer, level, linear_rope):
    torch.manual_seed(0)
    shape = {"layer_types": ["linear_elu1"] * 2, "use_bias": True, "linear_rope": linear_rope}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **shape, initializer_range=0.1)).eval()
    for block in model.blocks:
        block.mixer.qkv_proj.bias[: 2 * 32] = level
    assert make_native(model)
    ids = torch.randint(3, tokenizer.vocab_size, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    compiled, plain = start_batch(model), TorchBatch(model)
    for part in (ids[:20], ids[20:21], ids[21:]):
        speakers = [[0] * len(part)]
        torch.testing.assert_close(compiled.read([part], speakers), plain.read([part], speakers), rtol=1e-3, atol=1e-4)


def test_divide_bounds_the_denominator():
    zero = torch.zeros(1, 1)
    assert divide(zero, zero) == 0
    assert divide(torch.full((1, 1), 3e-20), torch.full((1, 1), 1e-20)) == pytest.approx(3)
    half = torch.full((1, 2), 0.5, dtype=torch.float16)
    assert divide(half, half[:, :1]).dtype == torch.float16
    above, below = torch.ones(1, 1, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    divide(above, below).backward()
    assert above.grad.item() == pytest.approx(1 / MIN_DENOMINATOR)
    assert below.grad.item() == 0


@pytest.mark.parametrize("form", ["naive", "chunked", "chunked_fast", "step"])
@pytest.mark.parametrize("distance", [0.0, 1e-4, 1e-3])
def test_taylor1_is_a_mean_at_the_antipode_of_its_keys(form, distance):
    """1 + cosine is rounding noise there; without the margin the output reached 70 for values up to 4."""
    generator = torch.Generator().manual_seed(0)
    length, width = 300, 8
    direction = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    k = direction + distance * torch.randn(1, length, 1, width, generator=generator)
    q = -direction.expand(1, length, 1, width)
    v = torch.randn(1, length, 1, 4, generator=generator)
    padded = torch.nn.functional.pad(v, (0, 1), value=1.0)
    g = torch.zeros(1, length, 1)
    phi_q, phi_k = taylor1(q), taylor1(k)
    if form == "step":
        state, outputs = torch.zeros(1, 1, width + 1, 5), []
        for t in range(length):
            now = slice(t, t + 1)
            output, state = step(phi_q[:, now], phi_k[:, now], padded[:, now], g[:, now], state)
            outputs.append(output)
        sums = torch.cat(outputs, 1)
    else:
        sums, _ = {"naive": naive, "chunked": chunked, "chunked_fast": chunked_fast}[form](phi_q, phi_k, padded, g)
    output = divide(sums[..., :-1], sums[..., -1:])[0, :, 0]
    cosine = torch.einsum("tk,jk->tj", *(torch.nn.functional.normalize(x[0, :, 0].double(), dim=-1) for x in (q, k)))
    weights = (1 + TAYLOR1_MARGIN + cosine).tril()
    exact = (weights / weights.sum(1, keepdim=True)) @ v[0, :, 0].double()
    assert (output.double() - exact).abs().max() < 0.01
    assert output.abs().max() <= v.abs().max() * 1.01

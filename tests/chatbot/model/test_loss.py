from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from chatbot.model import loss
from chatbot.model.loss import head_loss, next_token_loss, smoothed_mass


@pytest.fixture(autouse=True)
def several_pieces(monkeypatch):
    monkeypatch.setattr(loss, "MAX_LOGITS", 97 * 64)


def inputs(rows=300, width=16, size=97):
    torch.manual_seed(0)
    parts = torch.randn(rows, width), torch.randn(size, width), torch.randn(size)
    return [part.requires_grad_() for part in parts], torch.randint(0, size, (rows,))


@pytest.mark.parametrize("with_bias", [False, True])
def test_loss_and_gradients_are_those_of_cross_entropy(with_bias):
    results = []
    for ours in (True, False):
        (hidden, weight, bias), targets = inputs()
        bias = bias if with_bias else None
        if ours:
            total = head_loss(hidden, weight, bias, targets)
        else:
            total = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
        (total * 0.5).backward()
        results.append([total.detach(), hidden.grad, weight.grad, None if bias is None else bias.grad])
    for value, reference in zip(*results, strict=True):
        if reference is not None:
            torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["auto", "naive"])
def test_smoothed_training_keeps_the_true_probability_of_the_end_of_turn(form):
    """The optimum is where the gradient vanishes: p(end) is its frequency, all other tokens share the smoothed rest."""
    size, end, share = 11, 2, 0.2
    counts = torch.tensor([0, 0, 10, 50, 20, 10, 4, 3, 1, 1, 1])
    labels = torch.arange(size).repeat_interleave(counts)
    mass = smoothed_mass(size, share, (0, 1, end), torch.device("cpu"))
    wanted = (1 - share) * counts / 100 + mass * 0.9
    wanted[end] = 0.1
    logits = torch.where(wanted > 0, wanted.log(), torch.tensor(-1e4))
    weight = logits[:, None].clone().requires_grad_()
    hidden = torch.ones(1, len(labels) + 1, 1)
    labels = torch.cat([torch.tensor([-100]), labels])[None]
    next_token_loss(hidden, (weight, None), labels, None, form, mass).backward()
    assert wanted.sum().item() == pytest.approx(1)
    assert weight.grad.abs().max() < 1e-5


def test_large_logits_and_no_rows():
    (hidden, weight, _), targets = inputs()
    huge = head_loss(hidden * 1e4, weight, None, targets)
    torch.testing.assert_close(huge, F.cross_entropy(hidden * 1e4 @ weight.T, targets, reduction="sum"))
    assert head_loss(hidden[:0], weight, None, targets[:0]) == 0


def test_a_nan_shows():
    (hidden, weight, _), targets = inputs()
    hidden = hidden.detach().clone()
    hidden[5, 3] = math.nan
    assert head_loss(hidden, weight, None, targets).isnan()


def test_frozen_parts_and_autocast():
    (hidden, weight, _), targets = inputs()
    weight.requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = head_loss(hidden, weight, None, targets)
    total.backward()
    assert weight.grad is None
    assert hidden.grad.dtype == torch.float32
    torch.testing.assert_close(total, F.cross_entropy(hidden @ weight.T, targets, reduction="sum"), rtol=0.02, atol=1)


def test_nothing_is_kept_where_no_gradient_is_wanted():
    (hidden, weight, bias), targets = inputs()
    with torch.no_grad():
        total = head_loss(hidden, weight, bias, targets)
    assert not total.requires_grad
    torch.testing.assert_close(total, head_loss(hidden, weight, bias, targets).detach())


def test_gradients_of_a_bfloat16_head_are_summed_in_fp32():
    (hidden, weight, _), targets = inputs(rows=2000)
    head_loss(hidden, weight, None, targets).backward()
    rough = [part.detach().bfloat16().requires_grad_() for part in (hidden, weight)]
    head_loss(*rough, None, targets).backward()
    assert rough[1].grad.dtype == torch.bfloat16
    assert (rough[1].grad.float() - weight.grad).norm() / weight.grad.norm() < 0.01


def test_products_come_in_few_shapes():
    """bf16 products on CPUs cache memory for each shape; the number of targets differs from step to step."""
    shapes = set()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.mm.default:
                shapes.update(tuple(tensor.shape) for tensor in args)
            return function(*args, **(kwargs or {}))

    for rows in range(1, 200, 7):
        (hidden, weight, _), targets = inputs(rows=rows)
        with Shapes(), torch.autocast("cpu", torch.bfloat16):
            head_loss(hidden, weight, None, targets).backward()
    assert len({n for shape in shapes for n in shape} - set(weight.shape)) <= 4  # 64, 128, 192, 256

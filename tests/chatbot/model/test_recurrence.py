"""The decayed recurrence: three forms that agree, nothing from the future or from another dialogue."""

from __future__ import annotations

import itertools

import pytest
import torch

from chatbot.model.attention.recurrence import chunked, chunked_fast, naive, step

LENGTHS = (1, 63, 64, 65, 500)


def inputs(length: int, batch: int = 2, seed: int = 0, state: bool = False):
    generator = torch.Generator().manual_seed(seed)
    heads, width = 3, 8

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    q, k, v = (draw(batch, length, heads, width) for _ in range(3))
    log_decay = -draw(batch, length, heads).exp() * 0.3
    return q, k, v, log_decay, draw(batch, heads, width, width) if state else None


def segments(length: int, every: int) -> torch.Tensor:
    return torch.stack([torch.arange(length) // every, (torch.arange(length) + 5) // (every + 2)])


def run_steps(q, k, v, g, state):
    outputs = []
    state = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]) if state is None else state
    for t in range(q.shape[1]):
        now = slice(t, t + 1)
        output, state = step(q[:, now], k[:, now], v[:, now], g[:, now], state)
        outputs.append(output)
    return torch.cat(outputs, 1), state


def close(a, b, tolerance=1e-4):
    scale = b.abs().max().clamp_min(0.1)
    assert (a - b).abs().max() / scale < tolerance


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
def test_forms_agree_in_values_and_gradients(length, with_state):
    results = []
    for form in (naive, chunked, chunked_fast, run_steps):
        q, k, v, g, state = inputs(length, state=with_state)
        tensors = [tensor.requires_grad_() for tensor in (q, k, v, g)] + (
            [state.requires_grad_()] if with_state else []
        )
        output, last = form(q, k, v, g, state=state) if form is not run_steps else form(q, k, v, g, state)
        (output.sin().sum() + last.cos().sum()).backward()
        results.append([output.detach(), last.detach(), *(tensor.grad for tensor in tensors)])
    for other in results[1:]:
        for value, reference in zip(other, results[0], strict=True):
            close(value, reference)


@pytest.mark.parametrize("length", [63, 64, 65, 200])
@pytest.mark.parametrize("every", [1, 7, 64, 90])
def test_forms_agree_on_packed_dialogues(length, every):
    for with_state in (False, True):
        q, k, v, g, state = inputs(length, state=with_state)
        ids = segments(length, every)
        reference, last = naive(q, k, v, g, ids, state)
        for form in (chunked, chunked_fast):
            output, last_chunked = form(q, k, v, g, ids, state)
            close(output, reference)
            close(last_chunked, last)


@pytest.mark.parametrize("every", [1, 7, 64, 90])
@pytest.mark.parametrize("with_state", [False, True])
def test_gradients_agree_on_packed_dialogues(every, with_state):
    results = []
    for form in (naive, chunked, chunked_fast):
        tensors = [tensor.requires_grad_() for tensor in inputs(200, state=with_state) if tensor is not None]
        state = tensors[4] if with_state else None
        output, last = form(*tensors[:4], segments(200, every), state)
        (output.sin().sum() + last.cos().sum()).backward()
        results.append([tensor.grad for tensor in tensors])
    for other in results[1:]:
        for value, reference in zip(other, results[0], strict=True):
            close(value, reference)


def test_strong_decays_stay_finite():
    q, k, v, g, _ = inputs(200)
    tensors = [tensor.requires_grad_() for tensor in (q, k, v, g * 1e4)]
    output, last = chunked_fast(*tensors)
    (output.sum() + last.sum()).backward()
    for value, reference in zip(naive(*tensors), (output, last), strict=True):
        close(reference, value)
    assert all(tensor.grad.isfinite().all() for tensor in (q, k, v))


def test_packed_dialogues_equal_separate_ones():
    q, k, v, g, _ = inputs(100, batch=1)
    cuts = [0, 13, 64, 70, 100]
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor([b - a for a, b in itertools.pairwise(cuts)]))
    packed, _ = chunked(q, k, v, g, ids[None])
    for a, b in itertools.pairwise(cuts):
        alone, _ = chunked(q[:, a:b], k[:, a:b], v[:, a:b], g[:, a:b])
        close(packed[:, a:b], alone)


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 130])
def test_split_and_resume_equals_one_call(cut):
    q, k, v, g, _ = inputs(150)
    whole, last = chunked(q, k, v, g)
    first, state = chunked(q[:, :cut], k[:, :cut], v[:, :cut], g[:, :cut])
    second, state = chunked(q[:, cut:], k[:, cut:], v[:, cut:], g[:, cut:], state=state)
    close(torch.cat([first, second], 1), whole)
    close(state, last)


@pytest.mark.parametrize("planted", [1e4, float("nan")])
def test_naive_and_step_do_not_see_the_future_bit_for_bit(planted):
    for form in (naive, lambda *tensors: run_steps(*tensors, None)):
        q, k, v, g, _ = inputs(40)
        before, _ = form(q, k, v, g)
        for tensor in (q, k, v):
            tensor[:, 25] = planted
        after, _ = form(q, k, v, g)
        assert torch.equal(before[:, :25], after[:, :25])
        assert not torch.equal(before[:, 25:], after[:, 25:])


@pytest.mark.parametrize("form", [chunked, chunked_fast])
def test_chunked_does_not_see_the_future(form):
    q, k, v, g, _ = inputs(150)
    before, _ = form(q, k, v, g)
    for tensor in (q, k, v):
        tensor[:, 100] = 1e4
    after, _ = form(q, k, v, g)
    close(after[:, :100], before[:, :100], 1e-6)


def test_the_leak_test_catches_a_leaking_form(monkeypatch):
    """The same check on chunked attention without its causal mask fails."""
    monkeypatch.setattr(torch.Tensor, "tril", lambda tensor: tensor)
    with pytest.raises(AssertionError):
        test_chunked_does_not_see_the_future(chunked)


def test_bf16_stays_finite_over_4096_tokens():
    q, k, v, g, _ = inputs(4096, batch=1)
    output, state = chunked(q.bfloat16(), k.bfloat16(), v.bfloat16(), g)
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()
    assert state.dtype == torch.float32
    assert state.isfinite().all()

"""The gated delta rule: forms agree in values and gradients, also packed and from a state."""

from __future__ import annotations

import pytest
import torch

from chatbot.model.attention.delta import chunked, chunked_fast, naive
from tests.chatbot.model.test_recurrence import close, segments


def inputs(length: int, state: bool):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    q, k, v = (draw(2, length, 3, 8) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    tensors = [q, k, v, -draw(2, length, 3).exp() * 0.3, draw(2, length, 3).sigmoid()]
    return [tensor.requires_grad_() for tensor in [*tensors, *([draw(2, 3, 8, 8)] if state else [])]]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("every", [None, 7, 64, 90])
def test_forms_agree_in_values_and_gradients(length, every, with_state):
    results = []
    ids = None if every is None else segments(length, every)
    for form in (naive, chunked, chunked_fast):
        tensors = inputs(length, with_state)
        output, last = form(*tensors[:5], ids, tensors[5] if with_state else None)
        (output.sin().sum() + last.cos().sum()).backward()
        results.append([output.detach(), last.detach(), *(tensor.grad for tensor in tensors)])
    for other in results[1:]:
        for value, reference in zip(other, results[0], strict=True):
            close(value, reference)


@pytest.mark.parametrize("with_state", [False, True])
def test_forms_are_the_recurrence_of_the_paper(with_state):
    """S_t = exp(g_t) (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T and o_t = S_t^T q_t, written out in float64."""
    tensors = [tensor.detach().double() for tensor in inputs(20, with_state)]
    q, k, v, g, b = tensors[:5]
    first = tensors[5] if with_state else None
    expected, last = torch.zeros_like(v), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    for row in range(2):
        for head in range(3):
            state = torch.zeros(8, 8, dtype=torch.float64) if first is None else first[row, head]
            for t in range(20):
                key, at = k[row, t, head], (row, t, head)
                erase = torch.eye(8, dtype=torch.float64) - b[at] * torch.outer(key, key)
                state = g[at].exp() * erase @ state + b[at] * torch.outer(key, v[at])
                expected[at] = state.T @ q[at]
            last[row, head] = state
    for form in (naive, chunked, chunked_fast):
        output, state = form(q, k, v, g, b, None, first, **({} if form is naive else {"chunk_size": 7}))
        assert output.dtype == state.dtype == torch.float64
        close(output, expected, 1e-12)
        close(state, last, 1e-12)


def test_with_no_decay_and_full_strength_a_key_is_overwritten():
    k = torch.zeros(1, 2, 1, 4)
    k[..., 0] = 1
    v = torch.tensor([[[[1.0, 2.0]], [[5.0, 7.0]]]])
    ones, zeros = torch.ones(1, 2, 1), torch.zeros(1, 2, 1)
    for form in (naive, chunked, chunked_fast):
        output, state = form(k, k, v, zeros, ones)
        close(output, v)
        close(state[0, 0, 0], v[0, 1, 0])

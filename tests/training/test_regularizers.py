"""Regularizers follow their formulas, dialogue by dialogue, independent of the packing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from chatbot.model.loss import head_loss, smoothed_mass
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.layouts import IGNORED_LABEL
from tests.conftest import tiny_config
from training.data.packing import PackedData
from training.data.turn_store import TurnStore
from training.optim.regularizers import EmbeddingTap, Objective, dialogue_norms, divergence, unit
from training.settings import Regularization

MIXERS = {
    "gated": {},
    "default": {"layer_types": ["linear_elu1", "sliding_softmax"], "short_conv": 4, "output_gate": True},
}


@pytest.fixture(scope="module", params=MIXERS)
def network(request, tokenizer) -> XianliaoForCausalLM:
    torch.manual_seed(0)
    return XianliaoForCausalLM(tiny_config(tokenizer, initializer_range=0.1, **MIXERS[request.param])).train()


@pytest.fixture
def data(prepared, layout) -> PackedData:
    return PackedData(TurnStore([str(prepared)], "train"), layout, 64, 4, seed=0, pad_id=0)


def tuned(network, **settings) -> Objective:
    network.zero_grad()
    return Objective(network, network, Regularization(**settings))


def passes(network, data, rows, items=None, dtype=torch.float32, **settings):
    """Loss, addition and gradients of a micro-batch."""
    torch.manual_seed(1)
    objective = tuned(network, **settings)
    loss, extra = objective.backward(data.tensors(rows), items or data.targets(rows), torch.Tensor.backward)
    objective.close()
    return loss, extra, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_norms_are_those_of_single_dialogues():
    values = torch.randn(2, 6, 3)
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [0] * 6])
    norms = dialogue_norms(values, segments)
    assert norms[0, 3, 0] == pytest.approx(values[0, 2:5].norm().item())
    assert norms[1, 0, 0] == pytest.approx(values[1].norm().item())
    assert dialogue_norms(unit(values, segments), segments).flatten().tolist() == pytest.approx([1.0] * 12)
    assert unit(torch.zeros(1, 2, 3), segments[:1, :2]).eq(0).all()


def test_fgm_raises_the_loss_and_leaves_parameters_and_first_gradients_alone(network, data):
    raised = 0
    batches = data.batches(0)[:24]
    for rows in batches:
        before = copy.deepcopy(network.state_dict())
        plain, _, expected = passes(network, data, rows)
        seen = []

        def record(loss, seen=seen):
            loss.backward()
            seen.append((loss.item(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}))

        objective = tuned(network, fgm=0.5)
        torch.manual_seed(1)
        loss, extra = objective.backward(data.tensors(rows), data.targets(rows), record)
        objective.close()
        assert (loss, extra) == (plain, 0.0)
        assert len(seen) == 2
        assert all(torch.equal(gradient, expected[name]) for name, gradient in seen[0][1].items())
        assert any(not torch.equal(gradient, expected[name]) for name, gradient in seen[1][1].items())
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        raised += seen[1][0] > seen[0][0]
    assert raised >= 0.95 * len(batches)


def mean_loss_gradients(network, data, rows, embedded=None):
    """sum over the dialogues of n / 2 ||d mean loss / d e||^2, each dialogue run alone."""
    total = 0.0
    for index in (index for row in rows for index in row):
        batch = data.tensors([[index]])
        length = int(batch["attention_mask"].sum())
        batch = {name: tensor[:, :length] for name, tensor in batch.items()}
        tap = EmbeddingTap(network.token_embedding)
        loss = network(**batch, form="naive").loss
        tap.handle.remove()
        gradient = torch.autograd.grad(loss, tap.output)[0]
        total += (batch["labels"][:, 1:] != IGNORED_LABEL).sum().item() / 2 * gradient.square().sum().item()
    return total


def test_the_gradient_penalty_is_its_formula_and_its_gradient_finite_differences(tokenizer, data):
    torch.manual_seed(0)
    network = XianliaoForCausalLM(tiny_config(tokenizer, initializer_range=0.1, **MIXERS["default"])).double().train()
    rows = data.batches(0)[0][:2]
    items = data.targets(rows)
    _, extra, gradients = passes(network, data, rows, gradient_penalty=0.7)
    assert extra == pytest.approx(0.7 * mean_loss_gradients(network, data, rows) / items, rel=1e-6)
    assert extra > 0
    parameter = network.blocks[0].feed_forward.up_proj.weight
    for index in ((0, 0), (3, 5)):
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                parameter[index] += step
            values.append(sum(passes(network, data, rows, gradient_penalty=0.7)[:2]))
            with torch.no_grad():
                parameter[index] -= step
        slope = gradients["blocks.0.feed_forward.up_proj.weight"][index].item()
        assert (values[0] - values[1]) / 2e-4 == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_the_gradient_penalty_runs_on_the_twice_differentiable_form(network, data, capsys):
    objective = tuned(network, gradient_penalty=1.0)
    assert objective.form == "naive"
    assert "naive" in objective.notice
    objective.close()
    assert tuned(network).notice is None


def test_vat_identities(network, data):
    """VAT is 0 at length 0, grows with the square of a small length, and finds a worse direction than chance."""
    rows = data.batches(0)[0]
    batch, items = data.tensors(rows), data.targets(rows)
    plain, _, expected = passes(network, data, rows)
    loss, tiny, gradients = passes(network, data, rows, vat=1e-12)
    assert loss == plain
    assert abs(tiny) < 1e-6
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    exact = copy.deepcopy(network).double()
    small, double = (passes(exact, data, rows, vat=length)[1] for length in (0.002, 0.004))
    assert double / small == pytest.approx(4, rel=0.05)
    adversarial = passes(network, data, rows, vat=0.1)[1]
    counted = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL) != IGNORED_LABEL
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    random = []
    with torch.no_grad():
        fixed = network(**inputs).logits[counted].log_softmax(-1)
        assert divergence(fixed, fixed).item() == 0
        for _ in range(5):
            step = 0.1 * unit(torch.randn(*batch["input_ids"].shape, network.config.hidden_size), batch["segment_ids"])
            handle = network.token_embedding.register_forward_hook(lambda m, i, output, step=step: output + step)
            random.append(divergence(fixed, network(**inputs).logits[counted].log_softmax(-1)).item() / items)
            handle.remove()
    assert min(random) >= 0
    assert adversarial > 1.2 * max(random)


def test_the_trial_step_of_vat_has_a_length_of_a_tenth_a_token(network, data):
    batch = data.tensors(data.batches(0)[0])
    objective, steps = tuned(network, vat=0.1), []

    def record(module, inputs, output):
        if objective.tap.perturbation is not None:
            steps.append(objective.tap.perturbation.detach())

    handle = network.token_embedding.register_forward_hook(record)
    objective.backward(batch, 100, torch.Tensor.backward)
    handle.remove()
    objective.close()
    trial, adversary = (dialogue_norms(step, batch["segment_ids"]) for step in steps)
    tokens = dialogue_norms(torch.ones(*batch["input_ids"].shape, 1), batch["segment_ids"])  # sqrt of their number
    torch.testing.assert_close(trial, 0.1 * tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adversary, torch.full_like(adversary, 0.1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"fgm": 0.5}, {"gradient_penalty": 0.5}, {"label_smoothing": 0.1}],
    ids=lambda settings: next(iter(settings), "none"),
)
def test_micro_batches_and_packing_change_nothing(settings, network, data):
    """In float64: the second derivative of the gradient penalty makes more of float32's rounding than of a fault."""
    network = copy.deepcopy(network).double()
    rows = data.batches(0)[0]
    items = data.targets(rows)
    loss, extra, whole = passes(network, data, rows, items, **settings)
    network.zero_grad()
    alone = [[[index]] for row in rows for index in row]
    objective = Objective(network, network, Regularization(**settings))
    sums = [objective.backward(data.tensors(part), items, torch.Tensor.backward) for part in alone]
    objective.close()
    assert sum(pair[0] for pair in sums) == pytest.approx(loss, rel=1e-9)
    assert sum(pair[1] for pair in sums) == pytest.approx(extra, rel=1e-9)
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-7, atol=1e-9)


def test_noise_and_dropout_perturb_training_only(network, data):
    rows = data.batches(0)[0]
    plain = passes(network, data, rows)[0]
    assert passes(network, data, rows, embedding_noise=0.1)[0] != plain
    assert passes(network, data, rows, dropout=0.2)[0] != plain
    objective = tuned(network, dropout=0.2, vat=1e-12)
    torch.manual_seed(1)
    assert abs(objective.backward(data.tensors(rows), 100, torch.Tensor.backward)[1]) < 1e-6  # one mask for all passes
    objective.close()
    batch = data.tensors(rows)
    network.eval()
    first = network(**batch).loss.item()
    tuned(network).close()
    assert network(**batch).loss.item() == first
    network.train()


def test_label_smoothing_is_its_formula_and_leaves_out_the_end_of_turn():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets = torch.tensor([3, 4, 2, 10, 5])
    mass = smoothed_mass(11, 0.2, (0, 1, 2), torch.device("cpu"))
    assert mass[:3].tolist() == [0, 0, 0]
    assert mass.sum().item() == pytest.approx(0.2)
    log_p = (hidden @ weight.T).log_softmax(-1)
    smoothed = [0, 1, 3, 4]  # the third target is the end of turn
    expected = -(0.8 * log_p[smoothed, targets[smoothed]].sum() + 0.2 / 8 * log_p[smoothed, 3:].sum() + log_p[2, 2])
    loss = head_loss(hidden, weight, None, targets, mass)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_both_forms_of_the_model_smooth_alike(network, data):
    batch = data.tensors(data.batches(0)[0])
    losses = [network(**batch, form=form, label_smoothing=0.1).loss.item() for form in ("auto", "naive")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(network(**batch).loss.item(), rel=5e-5)

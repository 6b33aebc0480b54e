"""The latent of a reply: geometry, loss, and z in the model and in the compiled library."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.export.lite import export_lite
from chatbot.checkpoint.folder import load_model, save
from chatbot.decoding.batch import make_native, start_batch
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import CheckpointError
from chatbot.model.latent.gaussian import Normal, directions, free_bits, kl_per_dimension
from chatbot.model.latent.loss import LossWeights, code_costs, encode, latent_loss, reply_nats, sum_by_reply
from chatbot.model.latent.replies import choose_replies
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.scoring import score_turns
from tests.conftest import tiny_config

MIXERS = {
    "layer_types": ["linear_elu1", "sliding_softmax"],
    "output_gate": True,
    "short_conv": 4,
    "sliding_window": 8,
    "head_dim": 16,
    "latent_size": 6,
    "latent_codes": 4,
}


def latent_model(tokenizer, kind: str = "gaussian", skips: float = 0.3, **changes) -> XianliaoForCausalLM:
    """A random model; its skips have this standard deviation, zero as in a new model."""
    torch.manual_seed(1)
    model = XianliaoForCausalLM(tiny_config(tokenizer, initializer_range=0.3, latent=kind, **{**MIXERS, **changes}))
    for skip in model.latent.skips:
        torch.nn.init.normal_(skip.weight, std=skips) if skips else None
    return model.eval()


def packed(layout, tokenizer, texts: list[list[str]]) -> dict[str, torch.Tensor]:
    """Dialogues side by side in one row."""
    samples = [layout.lay_out([tokenizer.encode(turn) for turn in turns]) for turns in texts]
    columns = {
        "input_ids": [token for sample in samples for token in sample.input_ids],
        "token_type_ids": [speaker for sample in samples for speaker in sample.speaker_ids],
        "labels": [label for sample in samples for label in sample.labels],
        "segment_ids": [number for number, sample in enumerate(samples) for _ in sample.input_ids],
    }
    return {name: torch.tensor([values]) for name, values in columns.items()}


TEXTS = [["你好", "你好呀", "今天怎么样"], ["吃了吗", "吃了，你呢"], ["在吗", "在的", "看电影吗", "好啊"]]


@pytest.fixture
def batch(layout, tokenizer):
    return packed(layout, tokenizer, TEXTS)


def test_kl_equals_the_integral():
    """KL(q||p) of a normal against a normal by the trapezium rule, in float64."""
    q = Normal(torch.tensor([[0.7, -1.2]], dtype=torch.float64), torch.tensor([[-0.9, 0.4]], dtype=torch.float64))
    p = Normal(torch.tensor([[-0.3, 0.5]], dtype=torch.float64), torch.tensor([[0.6, -0.2]], dtype=torch.float64))
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    for dimension in range(2):
        log_q, log_p = (
            -0.5 * ((grid - n.mean[0, dimension]) ** 2 / n.log_variance[0, dimension].exp())
            - 0.5 * (n.log_variance[0, dimension] + math.log(2 * math.pi))
            for n in (q, p)
        )
        integral = torch.trapezoid(log_q.exp() * (log_q - log_p), grid)
        assert kl_per_dimension(q, p)[0, dimension] == pytest.approx(integral.item(), abs=1e-9)


def test_free_bits_bound_the_mean_of_the_batch():
    kl = torch.tensor([[0.0, 1.0], [0.2, 3.0]])
    assert free_bits(kl, 0.15) == pytest.approx(0.15 + 2.0)
    assert free_bits(kl, 0.05) == pytest.approx(0.1 + 2.0)


def test_directions_are_orthogonal_and_do_not_depend_on_their_number():
    rows = directions(5, 7, 4)
    assert torch.equal(rows[:3], directions(5, 3, 4))
    products = rows[:4] @ rows[:4].T
    assert (products - products.diag().diag()).abs().max() < 1e-5
    assert not torch.equal(rows, directions(6, 7, 4))
    lengths = torch.stack([directions(seed, 1, 16)[0].norm() for seed in range(200)])
    assert lengths.mean() == pytest.approx(16**0.5 * (1 - 1 / 64), abs=0.15)  # of normal noise


def test_a_new_latent_changes_no_bit(tokenizer, batch):
    model = latent_model(tokenizer, skips=0)
    base = XianliaoForCausalLM(tiny_config(tokenizer, **{k: v for k, v in MIXERS.items() if "latent" not in k})).eval()
    base.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("latent.")})
    replies = choose_replies(batch, tokenizer.sep_id, last=True)
    plain = reply_nats(base, batch, replies, None)
    assert torch.equal(plain, reply_nats(model, batch, replies, None))
    assert torch.equal(plain, reply_nats(model, batch, replies, torch.randn(len(replies), 6)))
    trained = latent_model(tokenizer)
    assert torch.equal(reply_nats(trained, batch, replies, torch.zeros(len(replies), 6)), plain)
    assert not torch.allclose(reply_nats(trained, batch, replies, torch.ones(len(replies), 6)), plain)


def test_replies_are_chosen_once_per_dialogue_and_later_turns_are_cut(tokenizer, batch):
    torch.manual_seed(0)
    for _ in range(5):
        replies = choose_replies(batch, tokenizer.sep_id)
        assert len(replies) == 3
        for row, context, end in zip(replies.rows, replies.contexts, replies.ends, strict=True):
            segment = batch["segment_ids"][row, end]
            later = (batch["segment_ids"][row] == segment) & (torch.arange(batch["input_ids"].shape[1]) > end)
            assert batch["input_ids"][row, context] == batch["input_ids"][row, end] == tokenizer.sep_id
            assert (replies.labels[row, later] == -100).all()
            assert torch.equal(
                replies.labels[row, context + 1 : end + 1], batch["input_ids"][row, context + 1 : end + 1]
            )
    batch["labels"][0, batch["segment_ids"][0] == 1] = -100
    assert len(choose_replies(batch, tokenizer.sep_id)) == 2


def test_reply_nats_are_those_of_the_score(tokenizer, layout, batch):
    model = latent_model(tokenizer)
    replies = choose_replies(batch, tokenizer.sep_id, last=True)
    mine = sum_by_reply(reply_nats(model, batch, replies, None), replies)
    scored = score_turns(model, layout, [[tokenizer.encode(turn) for turn in turns] for turns in TEXTS])
    assert mine.tolist() == pytest.approx([turns[-1] for turns in scored], rel=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "discrete"])
def test_gradients_equal_finite_differences(tokenizer, batch, kind):
    model = latent_model(tokenizer, kind, layer_types=["linear_decay", "sliding_softmax"]).double()
    replies = choose_replies(batch, tokenizer.sep_id, last=True)
    noise = torch.randn(len(replies), 6, dtype=torch.float64)
    weights = LossWeights(beta=0.7, bag=0.5, free_nats=0.01)

    def loss() -> torch.Tensor:
        return latent_loss(model, batch, replies, weights, noise).total

    loss().backward()
    names = ["latent.skips.1.weight", "latent.prior_mlp.2.weight", "latent.bag.weight"]
    names += ["latent.codes.weight"] if kind == "discrete" else ["latent.recognition_mlp.0.weight"]
    for name in names:
        parameter = model.get_parameter(name)
        index = int(parameter.grad.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[index] += step
                values.append(loss().item())
                parameter.view(-1)[index] -= step
        slope = (values[0] - values[1]) / 2e-5
        # prior and recognition also see hidden states that carry no gradient; those do not depend on these weights
        assert parameter.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-4), name


def test_hard_em_decreases_its_bound(tokenizer, batch):
    model = latent_model(tokenizer, "discrete")
    replies, weights = choose_replies(batch, tokenizer.sep_id, last=True), LossWeights(beta=1.0)
    optimizer = torch.optim.SGD(model.latent.parameters(), lr=2e-3)

    def bound(codes: torch.Tensor) -> float:
        costs = code_costs(model, batch, replies, encode(model, batch, replies), weights)
        return costs.gather(1, codes[:, None]).sum().item()

    codes, bounds = torch.zeros(len(replies), dtype=torch.int64), []
    for _ in range(6):
        bounds.append(bound(codes))
        result = latent_loss(model, batch, replies, weights)  # E step
        codes = result.codes
        bounds.append(bound(codes))
        assert bounds[-1] == pytest.approx(result.reply + result.divergence, rel=1e-4)
        optimizer.zero_grad()
        (result.total).backward()  # M step
        optimizer.step()
    assert all(after <= before + 1e-3 for before, after in pairwise(bounds))
    assert bounds[-1] < bounds[0] - 1


def test_states_with_z_alone_in_a_batch_and_compiled_agree(tokenizer):
    model = latent_model(tokenizer)
    z = [torch.randn(6), torch.randn(6), torch.zeros(6)]
    ids = [[1, 20, 31, 2], [1, 44, 2], [1, 50, 51, 52, 53, 2]]
    more = torch.tensor([60, 61, 62])

    def read(batch, rows: list[int]) -> torch.Tensor:
        batch.read([ids[row][:-1] for row in rows], [[0] * (len(ids[row]) - 1) for row in rows])
        for number, row in enumerate(rows):
            batch.set_latent(number, z[row])
        batch.read([[2]] * len(rows), [[0]] * len(rows))
        copy_ = batch.clone()
        copy_.select(torch.arange(len(rows)).flip(0))  # z moves with its row
        logits = copy_(more[rows].flip(0), torch.ones(len(rows), dtype=torch.int64)).flip(0)
        return torch.cat([logits, copy_.hidden.flip(0)], 1)

    together = read(start_batch(model, 3), [0, 1, 2])
    alone = torch.cat([read(start_batch(model), [row]) for row in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)
    native = copy.deepcopy(model)
    if not make_native(native):
        pytest.skip("no C compiler")
    compiled = read(start_batch(native, 3), [0, 1, 2])
    assert torch.allclose(together, compiled, atol=2e-4)
    assert torch.equal(compiled, torch.cat([read(start_batch(native), [row]) for row in range(3)]))
    unset = start_batch(native)
    unset.read([ids[2]], [[0] * len(ids[2])])
    plain = unset(more[2:], torch.ones(1, dtype=torch.int64))
    assert torch.equal(plain, compiled[2:, : plain.shape[1]])  # z = 0


def test_a_freed_slot_forgets_its_z(tokenizer):
    model = latent_model(tokenizer)
    make_native(model)
    for network in (model.native, None):
        model.native = network
        from chatbot.decoding.batch import start_slots

        pool = start_slots(model)
        slot, other = pool.enter(None), pool.enter(None)
        pool.read_rows([slot, other], [[1, 9], [1, 9]], [[0, 0]] * 2)
        pool.set_latent(slot, torch.ones(6) * 3)
        pool.leave(slot)
        again = pool.enter(None)
        logits = pool.read_rows([again, other], [[1, 9, 2], [2]], [[0] * 3, [0]])
        assert torch.allclose(logits[0], logits[1], atol=1e-4)


def test_a_checkpoint_keeps_its_latent_and_lite_refuses_it(tokenizer, tmp_path):
    model = latent_model(tokenizer, "discrete")
    save(tmp_path / "bot", model, tokenizer, {"floor_start_tokens": 12}, {})
    loaded = load_model(tmp_path / "bot")
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in model.state_dict().items())
    with pytest.raises(CheckpointError, match="does not support a latent variable of the reply"):
        export_lite(tmp_path / "bot", tmp_path / "bot.bin")


def test_a_latent_needs_a_softmax_and_our_layout(tokenizer):
    with pytest.raises(Exception, match="`latent` needs `termination` softmax"):
        tiny_config(tokenizer, latent="gaussian", termination="st")


def test_variants_are_the_same_for_a_seed_and_spread_from_the_mean(tokenizer):
    for kind in ("gaussian", "discrete"):
        latent, context = latent_model(tokenizer, kind).latent, torch.randn(32)
        first = [latent.variant(context, 3, number, 1.0) for number in (1, 2, 3)]
        assert all(torch.equal(z, latent.variant(context, 3, k, 1.0)) for k, z in enumerate(first, 1))
        assert not torch.equal(first[0], first[1])
    codes = [tuple(latent.variant(context, 3, number, 1.0).tolist()) for number in (1, 2, 3, 4)]
    assert len(set(codes)) == 4  # every code once
    gaussian = latent_model(tokenizer).latent
    prior = gaussian.prior(context[None])
    assert torch.allclose(gaussian.variant(context, 3, 1, 0.0), prior.mean[0])
    near, far = (gaussian.variant(context, 3, 2, spread) - prior.mean[0] for spread in (0.5, 1.5))
    assert torch.allclose(3 * near, far, atol=1e-5)


def test_bot_with_a_latent_gives_the_plain_reply_without_variation(tokenizer):
    model = latent_model(tokenizer)
    settings = ReplySettings(floor_start_tokens=12, floor_delta_tokens=4)
    plain = copy.deepcopy(model)
    plain.latent = None
    for seed in range(3):
        assert Chatbot(model, tokenizer, settings).reply(["你好"], seed) == Chatbot(plain, tokenizer, settings).reply(
            ["你好"], seed
        )

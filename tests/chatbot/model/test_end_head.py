"""ST and NMST: the papers' formulas with a restart at every turn, in every form of the forward pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import save
from chatbot.decoding.batch import TorchBatch, start_batch
from chatbot.decoding.rules.eos_floor import EosFloor
from chatbot.decoding.settings import ReplySettings
from chatbot.model.attention.tokens import Tokens
from chatbot.model.end_head import EndHead, combine
from chatbot.model.network import XianliaoForCausalLM
from tests.conftest import tiny_config

KINDS = ["st", "nmst"]
EPS = 0.01


def head_of(tokenizer, kind: str, **changes) -> EndHead:
    torch.manual_seed(1)
    head = EndHead(tiny_config(tokenizer, termination=kind, termination_epsilon=EPS, **changes)).double()
    torch.nn.init.normal_(head.weight, std=0.5)
    torch.nn.init.constant_(head.bias, 1.0 if kind == "st" else -2.0)
    return head


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def ended(tokenizer, kind) -> XianliaoForCausalLM:
    torch.manual_seed(0)
    config = tiny_config(tokenizer, termination=kind, termination_epsilon=EPS, initializer_range=0.15)
    model = XianliaoForCausalLM(config).eval()
    torch.nn.init.normal_(model.end_head.weight, std=0.3)
    return model


def dialogue_ids(tokenizer, lengths) -> list[int]:
    ids = [tokenizer.cls_id]
    for number, length in enumerate(lengths):
        ids += [40 + (7 * number + i) % 60 for i in range(length)] + [tokenizer.sep_id]
    return ids


def test_the_formulas_turn_by_turn(tokenizer, kind):
    head = head_of(tokenizer, kind)
    ids = torch.tensor([dialogue_ids(tokenizer, (3, 1, 6, 0, 2))])
    x = torch.randn(1, ids.shape[1], 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    end = head(x, ids, Tokens(None, None), None)
    t, product = 0, 1.0
    for position, token in enumerate(ids[0].tolist()):
        if token in (tokenizer.cls_id, tokenizer.sep_id):
            t, product = 0, 1.0  # the restart
        t += 1
        s = torch.sigmoid(x[0, position] @ head.weight + head.bias).item()
        if kind == "st":
            product *= (1 - EPS) * s
            expected = 1 - product
        else:
            expected = (1 - s) * (1 - (1 - EPS) ** t) + s
        assert end.log_end[0, position].exp().item() == pytest.approx(expected, abs=1e-9)
        assert end.log_continue[0, position].exp().item() == pytest.approx(1 - expected, abs=1e-9)
        assert expected >= 1 - (1 - EPS) ** t - 1e-12


def test_st_never_falls_within_a_turn_and_nmst_may(tokenizer):
    ids = torch.tensor([dialogue_ids(tokenizer, (30,))])
    x = torch.randn(1, ids.shape[1], 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    falls = {}
    for kind in KINDS:
        log_end = head_of(tokenizer, kind)(x, ids, Tokens(None, None), None).log_end[0, :-1]
        falls[kind] = bool((log_end.diff() < -1e-12).any())
    assert falls == {"st": False, "nmst": True}


def test_a_delayed_nmst_is_the_trained_floor(tokenizer):
    ids = torch.tensor([dialogue_ids(tokenizer, (12,))])
    x = torch.zeros(1, ids.shape[1], 32, dtype=torch.float64)
    t0, delta = 3, 4
    head = head_of(tokenizer, "nmst", termination_delay=t0 + 1)
    head.log_keep = EosFloor(t0, delta).log_keep
    torch.nn.init.constant_(head.bias, -60.0)
    share = head(x, ids, Tokens(None, None), None).log_end[0, :-1].exp()
    never = torch.full((13, 5), 0.25, dtype=torch.float64).log()
    never[:, 2] = -math.inf
    floored = EosFloor(t0, delta).apply(never, torch.arange(13), 2)[:, 2].exp()
    torch.testing.assert_close(share, floored, atol=1e-6, rtol=0)


def test_probabilities_sum_to_one(ended, tokenizer):
    ids = torch.tensor([dialogue_ids(tokenizer, (5, 9, 30))])
    logits = ended(ids).logits
    assert (logits.exp().sum(-1) - 1).abs().max() < 1e-5


def test_token_by_token_is_the_full_pass(ended, tokenizer):
    ids = torch.tensor([dialogue_ids(tokenizer, (5, 0, 9, 3))]).repeat(2, 1)
    speakers = torch.zeros_like(ids)
    full = ended(ids, token_type_ids=speakers).logits
    state, steps = ended.new_state(), []
    for position in range(ids.shape[1]):
        steps.append(ended(ids[:, position : position + 1], past_key_values=state).logits)
    assert (torch.cat(steps, 1) - full).abs().max() < 1e-5
    for cut in (1, 4, 7, 12):  # and in pieces that begin within a turn
        state = ended.new_state()
        pieces = [ended(part, past_key_values=state).logits for part in (ids[:, :cut], ids[:, cut:])]
        assert (torch.cat(pieces, 1) - full).abs().max() < 1e-5


def test_padding_and_packing_change_nothing(ended, tokenizer):
    first, second = dialogue_ids(tokenizer, (5, 2)), dialogue_ids(tokenizer, (3, 8, 1))
    alone = [ended(torch.tensor([ids])).logits[0] for ids in (first, second)]
    packed = torch.tensor([first + second])
    segments = torch.tensor([[0] * len(first) + [1] * len(second)])
    together = ended(packed, segment_ids=segments).logits[0]
    assert (together - torch.cat(alone)).abs().max() < 1e-5
    open_end = torch.tensor([first[:-1] + second])  # a dialogue that was cut inside a turn
    segments = torch.tensor([[0] * (len(first) - 1) + [1] * len(second)])
    assert (ended(open_end, segment_ids=segments).logits[0, len(first) - 1 :] - alone[1]).abs().max() < 1e-5
    steps = TorchBatch(ended, 2)
    logits = steps.read([first, second], [[0] * len(first), [0] * len(second)])
    assert (logits - torch.stack([alone[0][-1], alone[1][-1]])).abs().max() < 1e-5
    follow = steps(torch.tensor([50, 51]), torch.tensor([0, 0]))
    expected = [ended(torch.tensor([[*ids, token]])).logits[0, -1] for ids, token in ((first, 50), (second, 51))]
    assert (follow - torch.stack(expected)).abs().max() < 1e-5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_probabilities(ended, tokenizer, smoothing):
    ids = torch.tensor([dialogue_ids(tokenizer, (5, 9))])
    labels = ids.clone()
    labels[:, 0] = -100
    out = ended(ids, labels=labels, label_smoothing=smoothing)
    log_p = out.logits[0, :-1]
    target = ids[0, 1:]
    nats = -log_p.gather(1, target[:, None])[:, 0]
    if smoothing:
        others = [v for v in range(log_p.shape[1]) if v not in (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)]
        smoothed = (1 - smoothing) * nats - smoothing * log_p[:, others].mean(1)
        nats = torch.where(target == tokenizer.sep_id, nats, smoothed)
    assert out.loss.item() == pytest.approx(nats.mean().item(), abs=1e-5)
    naive = ended(ids, labels=labels, label_smoothing=smoothing, form="naive").loss
    assert out.loss.item() == pytest.approx(naive.item(), abs=1e-5)
    gradients = []
    for form in ("auto", "naive"):
        ended.zero_grad()
        ended(ids, labels=labels, label_smoothing=smoothing, form=form).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in ended.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert {"end_head.weight", "end_head.bias"} <= gradients[0].keys()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=2e-5, rtol=1e-4)


def test_greedy_ends_within_the_heads_bound(ended, tokenizer, layout):
    """EOS has half of the mass after ln 1/2 / ln (1 - eps) tokens, even if the model prefers other tokens."""
    torch.nn.init.zeros_(ended.end_head.weight)
    torch.nn.init.constant_(ended.end_head.bias, 40.0 if ended.config.termination == "st" else -40.0)
    with torch.no_grad():
        ended.final_norm.weight *= 50  # sure of its next token, so that only a share near one half ends the reply
    bot = Chatbot(ended, tokenizer, ReplySettings("greedy", floor_start_tokens=None, max_reply_tokens=500))
    bot.vocabulary = replace(bot.vocabulary, readable=None)  # the model may say bytes that are no text
    bound = math.floor(math.log(0.5) / math.log(1 - EPS)) + 1
    reply = bot.respond(["你好"])
    assert reply.stop_reason == "eos"
    assert bound - 10 < len(reply.token_ids) <= bound


def test_it_is_saved_loaded_and_generates(ended, tokenizer, tmp_path):
    save(tmp_path / "bot", ended, tokenizer, {"floor_start_tokens": 12}, {})
    bot = Chatbot.from_pretrained(tmp_path / "bot")
    assert bot.model.config.termination == ended.config.termination
    assert isinstance(start_batch(bot.model), TorchBatch)  # the compiled step does not know the head
    prompt = bot.layout.prompt(bot.encode_turns(["你好"]), 100)
    ids, speakers = torch.tensor([prompt.input_ids]), torch.tensor([prompt.speaker_ids])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": tokenizer.sep_id, "pad_token_id": 0}
    out = bot.model.generate(ids, token_type_ids=speakers, min_new_tokens=1, **options)[0, ids.shape[1] :].tolist()
    ours = list(bot.respond(["你好"], method="greedy", floor_start_tokens=100).token_ids)
    allowed = [token for token in out if token not in bot.vocabulary.banned_ids]
    assert allowed[: len(ours)][:3] == ours[:3] or out != allowed  # generate() may say [PAD] or [CLS]


def test_combine_keeps_the_proportions_of_the_other_tokens(tokenizer):
    head = head_of(tokenizer, "nmst")
    ids = torch.tensor([dialogue_ids(tokenizer, (4,))])
    x = torch.randn(1, ids.shape[1], 32, dtype=torch.float64)
    logits = torch.randn(1, ids.shape[1], tokenizer.vocab_size, dtype=torch.float64)
    combined = combine(logits, head(x, ids, Tokens(None, None), None), tokenizer.sep_id)
    difference = (combined - logits)[..., [5, 50, 500]]
    assert (difference - difference[..., :1]).abs().max() < 1e-9

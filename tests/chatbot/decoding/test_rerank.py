"""Choosing among candidates: near-identical ones are one, parrots lose, the backward model is heard."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chatbot.chat.bot import Chatbot, candidate_seeds
from chatbot.checkpoint.folder import BACKWARD
from chatbot.decoding.candidates import Draft
from chatbot.decoding.rerank import Answered, Ranker, RankingError, likelihood
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import CheckpointError
from chatbot.model.network import XianliaoForCausalLM
from chatbot.similarity.token_vectors import TokenVectors
from tests.conftest import tiny_config

HISTORY = Answered([[5, 6, 7]], [])


def draft(ids, log_prob=-1.0):
    return Draft(list(ids), log_prob, "eos")


def test_the_likeliest_likelihood_wins(layout):
    drafts = [draft([5, 6], -6), draft([7, 8, 9], -6.4), draft([10], -5)]
    assert Ranker(layout).best([HISTORY], [drafts], ReplySettings()) == [1]
    assert Ranker(layout).best([HISTORY], [[draft([5]), draft([6])]], ReplySettings()) == [0]


def test_a_reply_that_was_cut_off_has_no_end_to_divide_by(layout):
    cut = Draft([5, 6, 7], -6.0, "limit")
    assert likelihood(cut) == pytest.approx(-6 / 3**0.5)
    assert likelihood(draft([5, 6, 7], -6.0)) == -3.0


def test_near_identical_candidates_are_one(layout):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((20, 8))
    vectors[11] = vectors[10] * 1.01 + 1e-3
    ranker = Ranker(layout, TokenVectors(vectors))
    drafts = [draft([10, 12], -3), draft([11, 12], -2), draft([13, 14], -4), draft([13, 14], -4)]
    assert ranker.different(drafts) == [1, 2]
    assert Ranker(layout).different(drafts) == [0, 1, 2]


def test_parrots_lose_when_likeness_counts(layout):
    settings = ReplySettings(rank_similarity=10.0)
    drafts = [draft([5, 6, 7], -0.1), draft([8, 9, 10], -4)]
    ranker = Ranker(layout)
    assert ranker.best([HISTORY], [drafts], ReplySettings()) == [0]
    assert ranker.best([HISTORY], [drafts], settings) == [1]
    again = Answered([[5, 6, 7]], [[8, 9, 10]])  # and saying the last reply again is no better
    assert ranker.best([again], [[*drafts, draft([11, 12], -9)]], settings) == [2]


def test_the_backward_model_is_heard_and_must_be_there(layout, tokenizer):
    torch.manual_seed(3)
    model = XianliaoForCausalLM(tiny_config(tokenizer, initializer_range=0.5, direction="backward")).eval()
    history = Answered([[30, 31], [32, 33, 34], [35, 36]], [[32, 33, 34]])
    drafts = [draft([n, n + 1], -1.0) for n in range(40, 48)]
    chosen = Ranker(layout, backward=model).best([history], [drafts], ReplySettings(rank_backward=1.0))[0]
    by_hand = []
    for d in drafts:
        ids = [tokenizer.cls_id, *d.token_ids, tokenizer.sep_id, 35, 36, tokenizer.sep_id, 32, 33, 34, tokenizer.sep_id]
        speakers = [0] * 4 + [1] * 3 + [0] * 4
        logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([speakers])).logits[0].log_softmax(-1)
        by_hand.append(sum(logits[i - 1, ids[i]].item() for i in range(4, len(ids))))
    assert chosen == int(np.argmax(by_hand))
    with pytest.raises(RankingError, match="backward model"):
        Ranker(layout).best([history], [drafts], ReplySettings(rank_backward=1.0))


def test_a_reply_that_is_likely_without_the_context_loses(layout, tokenizer):
    torch.manual_seed(4)
    model = XianliaoForCausalLM(tiny_config(tokenizer, initializer_range=0.5)).eval()
    history = Answered([[30, 31], [32, 33, 34], [35, 36]], [])
    drafts = [draft([n, n + 1], -1.0 - n / 100) for n in range(40, 48)]
    chosen = Ranker(layout, forward=model).best([history], [drafts], ReplySettings(rank_prior=0.8))[0]
    scores = []
    for d in drafts:
        ids = torch.tensor([[tokenizer.cls_id, *d.token_ids, tokenizer.sep_id]])
        logits = model(ids, token_type_ids=torch.ones_like(ids)).logits[0].log_softmax(-1)  # the reply is turn 3
        prior = sum(logits[i - 1, ids[0, i]].item() for i in range(1, 4))
        scores.append((d.log_prob - 0.8 * prior) / 3**0.5)
    assert chosen == int(np.argmax(scores))
    assert Ranker(layout).best([history], [drafts], ReplySettings())[0] == 0
    with pytest.raises(RankingError, match="rank_prior"):
        Ranker(layout).best([history], [drafts], ReplySettings(rank_prior=0.8))


def test_a_bot_ranks_with_its_own_model(bot):
    assert bot.respond(["你好"], seed=4, candidates=5, rank_prior=0.9).text in {
        bot.respond(["你好"], seed=seed).text for seed in candidate_seeds(4, 5)
    }


def test_best_of_n_is_one_of_the_n_and_one_is_the_plain_reply(bot):
    plain = bot.respond(["你好"], seed=4)
    assert bot.respond(["你好"], seed=4, candidates=1).text == plain.text
    seeds = candidate_seeds(4, 5)
    assert seeds[0] == 4
    assert len(set(seeds)) == 5
    each = [bot.respond(["你好"], seed=seed) for seed in seeds]
    best = bot.respond(["你好"], seed=4, candidates=5)
    assert best.token_ids in [reply.token_ids for reply in each]
    assert best.text == bot.respond(["你好"], seed=4, candidates=5).text
    scores = [reply.log_prob / (len(reply.token_ids) + 1) ** 0.5 for reply in each]
    assert best.token_ids == each[int(np.argmax(scores))].token_ids
    texts = list(bot.stream(["你好"], seed=4, candidates=3))
    assert texts == [bot.reply(["你好"], seed=4, candidates=3)]  # the best is known at the end
    with pytest.raises(RankingError, match="--direction backward"):
        bot.respond(["你好"], candidates=2, rank_backward=1.0)


def test_a_checkpoint_with_a_backward_folder(checkpoint, model, tokenizer, tmp_path):
    from chatbot.checkpoint.convert import copy
    from chatbot.checkpoint.folder import save

    folder = tmp_path / "bot"
    shutil.copytree(checkpoint, folder)
    backward = XianliaoForCausalLM(tiny_config(tokenizer, direction="backward"))
    save(folder / BACKWARD, backward, tokenizer, {}, {})
    text = Chatbot.from_pretrained(folder).reply(["你好"], seed=0, candidates=3, rank_backward=0.5)
    copy(folder, tmp_path / "copied")
    assert Chatbot.from_pretrained(tmp_path / "copied").reply(["你好"], seed=0, candidates=3, rank_backward=0.5) == text
    with pytest.raises(CheckpointError, match="backwards"):
        Chatbot.from_pretrained(folder / BACKWARD)
    save(folder / BACKWARD, model, tokenizer, {}, {})
    with pytest.raises(CheckpointError, match="is not a backward model"):
        Chatbot.from_pretrained(folder).reply(["你好"], seed=0, candidates=3, rank_backward=0.5)


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_the_backward_model_scores_the_last_two_turns(layout, monkeypatch, turns):
    scored = []

    def score(model, given_layout, dialogues):
        scored.extend(dialogues)
        return [[0.0] * len(dialogue) for dialogue in dialogues]

    monkeypatch.setattr("chatbot.decoding.rerank.score_turns", score)
    history = Answered([[10 + turn] for turn in range(turns)], [])
    backward = SimpleNamespace(max_tokens=None)
    Ranker(layout, backward=backward).best([history], [[draft([5]), draft([6])]], ReplySettings(rank_backward=1.0))
    last = [10 + turn for turn in reversed(range(turns))][:2]
    assert scored == [[[5], *([token] for token in last)], [[6], *([token] for token in last)]]


def test_a_backward_model_with_few_positions_reads_the_nearest_tokens(layout, tokenizer):
    """Its limit is kept whatever the history: the farther turn is left out, then the end of the last message."""
    config = tiny_config(
        tokenizer, direction="backward", layer_types=["synthesizer_random"] * 2, max_position_embeddings=12
    )
    model = XianliaoForCausalLM(config).eval()
    assert model.max_tokens == 12
    ranker = Ranker(layout, backward=model)
    history = Answered([list(range(20, 40)), list(range(40, 60))], [])
    drafts = [draft([n, n + 1], -1.0) for n in range(40, 44)]
    assert ranker._fitting([d.token_ids for d in drafts], [[7] * 3, [8] * 20]) == [[7] * 3]
    assert ranker._fitting([[5] * 4, [6] * 2], [list(range(20, 40))]) == [
        list(range(20, 25))
    ]  # 12 = [CLS] 4 [SEP] 5 [SEP]
    ranker.best([history], [drafts], ReplySettings(rank_backward=1.0))
    with pytest.raises(RankingError, match="reads at most 12 tokens, and a reply has 30"):
        ranker.best([history], [[draft(list(range(30, 60))), draft([5])]], ReplySettings(rank_backward=1.0))

"""Beam search: the best replies it could find, and an end within the floor's bound on any model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from chatbot.decoding.candidates import GenerationError
from chatbot.decoding.loop import decode
from chatbot.decoding.settings import ReplySettings
from tests.chatbot.decoding.test_loop import EOS, HOSTILE, WORDS, Hostile, V, run


class Following(Hostile):
    """`Hostile` whose rows know which token they have read, so that a wrong `select` shows."""

    def __init__(self, table: torch.Tensor, rows: int):
        super().__init__(table)
        self.read = [[] for _ in range(rows)]

    def __call__(self, ids, speakers):
        assert len(ids) == len(self.read)
        for row, token in zip(self.read, ids.tolist(), strict=True):
            row.append(token)
        return super().__call__(ids, speakers)

    def select(self, rows):
        self.read = [list(self.read[row]) for row in rows.tolist()]


def search(table: torch.Tensor, settings: ReplySettings, rows: int = 1):
    steps = Following(table, rows)
    return list(decode(steps, table[3].expand(rows, -1), [1] * rows, settings, WORDS, range(rows)))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize(("t0", "delta"), [(1, 1), (5, 4), (20, 8), (53, 32)])
def test_it_ends_within_the_bound(name, beams, t0, delta):
    settings = ReplySettings("beam", beams=beams, floor_start_tokens=t0, floor_delta_tokens=delta)
    (draft,) = run(HOSTILE[name], settings)
    assert len(draft.token_ids) <= t0 + delta + 1 == settings.bound_tokens
    assert draft.stop_reason in ("eos", "floor")
    if name == "no eos":
        assert draft.stop_reason == "floor"
    assert not {0, 1, EOS} & set(draft.token_ids)


def test_one_beam_is_greedy():
    for seed in range(5):
        table = torch.randn(V, V, generator=torch.Generator().manual_seed(seed)) * 2
        floor = {"floor_start_tokens": 4, "floor_delta_tokens": 4}
        (greedy,) = run(table, ReplySettings("greedy", **floor))
        (beam,) = run(table, ReplySettings("beam", beams=1, **floor))
        assert (beam.token_ids, beam.stop_reason) == (greedy.token_ids, greedy.stop_reason)
        assert beam.log_prob == pytest.approx(greedy.log_prob)


@pytest.mark.parametrize("seed", range(4))
def test_enough_beams_find_the_likeliest_reply(seed):
    """Against all replies of up to three tokens; longer ones cannot be likelier where EOS is likely."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(seed))
    table[:, EOS] += 3
    settings = ReplySettings("beam", beams=64, floor_start_tokens=30)
    (draft,) = run(table, settings)
    allowed = [token for token in range(V) if token not in (0, 1, EOS)]
    log_p = table.clone()
    log_p[:, [0, 1]] = -math.inf
    first = log_p[3].clone()
    first[EOS] = -math.inf  # min_reply_tokens
    first, log_p = first.log_softmax(-1), log_p.log_softmax(-1)
    best = {}
    for length in (1, 2, 3):
        for reply in itertools.product(allowed, repeat=length):
            steps = sum(log_p[a, b].item() for a, b in itertools.pairwise((*reply, EOS)))
            best[reply] = first[reply[0]].item() + steps
    likeliest = max(best, key=best.get)
    assert tuple(draft.token_ids) == likeliest
    assert draft.log_prob == pytest.approx(best[likeliest], abs=1e-4)


def test_what_is_shown_only_grows_and_rows_do_not_mix():
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(1))
    table[:, EOS] -= 3
    settings = ReplySettings("beam", beams=3, floor_start_tokens=8, floor_delta_tokens=4)
    shown = search(table, settings, rows=5)
    for row in range(5):
        texts = [drafts[row].token_ids for drafts in shown]
        assert all(later[: len(text)] == text for text, later in itertools.pairwise(texts))
        assert texts[-1] == shown[-1][0].token_ids
    (alone,) = run(table, settings)
    assert alone.token_ids == shown[-1][0].token_ids


def test_rules_against_repetition_and_bans_hold():
    settings = ReplySettings("beam", beams=2, floor_start_tokens=20, floor_delta_tokens=8, no_repeat_ngram=2)
    (draft,) = run(HOSTILE["loop"], settings)
    pairs = list(itertools.pairwise(draft.token_ids))
    assert len(set(pairs)) == len(pairs)


def test_the_limit_and_broken_numbers_say_so():
    plain = ReplySettings("beam", beams=2, floor_start_tokens=None, max_reply_tokens=17)
    (draft,) = run(HOSTILE["no eos"], plain)
    assert (len(draft.token_ids), draft.stop_reason) == (17, "limit")
    with pytest.raises(GenerationError, match="not a number"):
        run(torch.full((V, V), math.nan), plain)


def test_a_chatbot_decodes_with_it(bot):
    greedy = bot.respond(["你好"], method="greedy")
    assert bot.respond(["你好"], method="beam", beams=1).text == greedy.text
    reply = bot.respond(["你好"], seed=1, method="beam", beams=4)
    assert reply == bot.respond(["你好"], seed=1, method="beam", beams=4) or reply.text  # seconds differ
    texts = list(bot.stream(["你好"], method="beam", beams=4))
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert texts[-1] == reply.text

"""根本停不下来: a model that was trained to loop, and one that stops in the middle of a character."""

from __future__ import annotations

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation.metrics import unfinished_share
from chatbot.model.network import XianliaoForCausalLM
from tests.conftest import tiny_config

CYCLE = (300, 301, 302, 303)


@pytest.fixture(scope="module")
def looping(tokenizer, layout) -> Chatbot:
    """Trained on turns that go round and round, and are cut, not ended, where the row is full."""
    torch.manual_seed(0)
    model = XianliaoForCausalLM(tiny_config(tokenizer)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    random = torch.Generator().manual_seed(1)
    for _ in range(80):
        message = torch.randint(270, 299, (8, 3), generator=random)
        start = torch.randint(0, 4, (8, 1), generator=random)
        reply = torch.tensor(CYCLE)[(start + torch.arange(60)) % 4]
        ends = torch.full((8, 1), tokenizer.sep_id)
        ids = torch.cat([torch.full((8, 1), tokenizer.cls_id), message, ends, reply], 1)
        labels = torch.where(torch.arange(ids.shape[1]) < 1, -100, ids)
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    return Chatbot(model.eval(), tokenizer, ReplySettings(floor_start_tokens=40, floor_delta_tokens=16))


def test_plain_greedy_never_stops_and_ours_always_does(looping, tokenizer):
    messages = [tokenizer.decode([token, token + 3]) for token in range(270, 276)]
    plain = {"method": "greedy", "floor_start_tokens": None, "max_reply_tokens": 200}
    lengths, ended = {}, {}
    for name, changes in (("plain", plain), ("ours", {"method": "greedy"}), ("beam", {"method": "beam"})):
        looping.settings = ReplySettings(**{"floor_start_tokens": 40, "floor_delta_tokens": 16, **changes})
        replies = [looping.respond([message]) for message in messages]
        lengths[name] = [len(reply.token_ids) for reply in replies]
        ended[name] = [reply.stop_reason != "limit" for reply in replies]
    assert unfinished_share(lengths["plain"], ended["plain"], 200) > 0.5
    for name in ("ours", "beam"):
        assert unfinished_share(lengths[name], ended[name], 58) == 0
        assert max(lengths[name]) <= 40 + 16 + 1


def test_the_cost_breaks_the_loop(looping, tokenizer):
    looping.settings = ReplySettings("greedy", floor_start_tokens=40, no_repeat_ngram=2, repeat_cost=4.0)
    reply = looping.respond([tokenizer.decode([280])])
    longest = max((reply.token_ids.count(token) for token in CYCLE), default=0)
    assert longest < 6  # ten times round without the cost


@pytest.mark.parametrize("most", [1, 2, 4, 5])
def test_a_stop_inside_a_character_shows_whole_characters_only(model, tokenizer, most):
    """Bytes of a character that no token stands for, forced one after the other, cut at every place."""
    spelled = tokenizer.encode("𠮷𠮷")
    assert len(spelled) == 8

    class Spelling:
        def __init__(self, inner):
            self.inner, self.position = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def _force(self, logits):
            forced = torch.full_like(logits, -30.0)
            forced[:, spelled[self.position]] = 0
            self.position += 1
            return forced

        def read(self, *args):
            return self._force(self.inner.read(*args))

        def __call__(self, *args):
            return self._force(self.inner(*args))

        def clone(self):
            return self

    bot = Chatbot(model, tokenizer, ReplySettings("greedy", max_reply_tokens=most))
    import chatbot.chat.bot

    start = chatbot.chat.bot.start_batch
    chatbot.chat.bot.start_batch = lambda *args: Spelling(start(*args))
    try:
        replies = list(bot.stream_replies(["你"]))
    finally:
        chatbot.chat.bot.start_batch = start
    assert replies[-1].text == "𠮷" * (most // 4)
    assert all("\ufffd" not in reply.text for reply in replies)
    assert len(replies[-1].token_ids) == most

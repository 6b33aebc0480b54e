"""The picture of replies in the space of the latent."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation.latent.picture import SIZE, UNIT, overlap, picture, pulls, whitened_replies
from chatbot.model.latent.gaussian import Normal, kl_per_dimension
from tests.chatbot.model.test_latent import latent_model

NAME = "{http://www.w3.org/2000/svg}"


def test_the_parts_add_up_to_the_kl():
    q, p = Normal(torch.randn(3, 4), torch.randn(3, 4)), Normal(torch.randn(3, 4), torch.randn(3, 4))
    centre, volume = pulls(q.whitened_by(p))
    assert torch.allclose(centre + volume, kl_per_dimension(q, p), atol=1e-5)


def test_the_overlap_equals_the_integral():
    q = Normal(torch.tensor([[0.3], [1.5]]), torch.tensor([[0.2], [-0.7]]))
    grid = torch.linspace(-12, 12, 20001)[:, None]
    densities = [Normal(q.mean[i : i + 1], q.log_variance[i : i + 1]).log_density(grid[:, None])[:, 0] for i in (0, 1)]
    integral = torch.trapezoid((0.5 * (densities[0] + densities[1])).exp(), grid[:, 0])
    assert overlap(q, 0, 1) == pytest.approx(integral.item(), abs=1e-4)
    assert overlap(q, 0, 0) == pytest.approx(1)


def test_replies_are_ellipses_with_their_texts():
    mean = torch.tensor([[0.0, 1.0, 0.0], [0.0, -3.0, 2.0], [0.0, 1.1, 0.1]])
    q = Normal(mean, torch.tensor([[0.0, -2.0, 0.0]]).expand(3, 3))
    root = ET.fromstring(picture(q, ["好", "<不>", "好呀"], "吃了吗"))
    ellipses = root.findall(f"{NAME}ellipse")
    assert [float(e.get("cx")) for e in ellipses] == pytest.approx(
        [SIZE / 2 + UNIT * m for m in (1.0, -3.0, 1.1)], abs=0.1
    )
    assert float(ellipses[0].get("rx")) == pytest.approx(UNIT * 0.3679, abs=0.1)
    assert len(root.findall(f"{NAME}line")) == 1  # of the two replies that overlap
    texts = [text.text for text in root.findall(f"{NAME}text")]
    assert texts[0] == "好 (0.5 + 0.6 nat)"
    assert texts[1].startswith("<不> (6.5")
    assert texts[-1] == "吃了吗"


def test_each_reply_is_read_after_the_history(tokenizer):
    bot = Chatbot(latent_model(tokenizer), tokenizer, ReplySettings())
    two_replies = whitened_replies(bot, ["你好", "你好呀", "吃了吗"], ["吃了", "还没有呢，你呢"])
    alone = whitened_replies(bot, ["你好", "你好呀", "吃了吗"], ["还没有呢，你呢"])
    assert torch.equal(two_replies.mean[1], alone.mean[0])
    assert not torch.allclose(two_replies.mean[0], two_replies.mean[1])

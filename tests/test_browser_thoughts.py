"""Thoughts of a chat model, folded above its answer, in a real Chromium."""

from __future__ import annotations

import json

import pytest

from chatbot import Chatbot
from tests.chat_models import THINKING, write_chat_model
from tests.test_browser import one_browser  # noqa: F401  # fixture
from tests.test_browser_page import page, say  # noqa: F401  # fixtures
from tests.ui.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def thinker(dialogues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker") / "qwen3"
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], "qwen3")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "chat_template": THINKING}, ensure_ascii=False), encoding="utf-8")
    forced = [[Chatbot.from_pretrained(folder).tokenizer.id_of("<think>"), 100]]
    generation = {"logit_bias": forced, "thinking_tokens": 6, "max_reply_tokens": 6}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def server(thinker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    options = ("--data-dir", str(folder), "--checkpoint", str(thinker), "--thinking", "shown")
    with serving(folder, *options) as (address, _):
        yield address


def test_thoughts_are_folded_above_the_answer_and_stay(page, thinker):  # noqa: F811
    expected = Chatbot.from_pretrained(thinker).respond(["你好"], 3, thinking="shown")
    page.set_seed(3)
    reply = page.send("你好")
    assert reply == expected.text
    (folded,) = page.find("#chat .x-turn.bot details.x-thoughts")
    assert folded.find_element("css selector", "summary").text == say(page, "thoughts")
    assert not folded.get_attribute("open")
    shown = page.driver.execute_script("return document.querySelector('.x-thoughts').textContent")
    assert shown == say(page, "thoughts") + expected.thoughts
    page.send("再见")
    assert len(page.find("#chat .x-turn.bot details.x-thoughts")) == 2

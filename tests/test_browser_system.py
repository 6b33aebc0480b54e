"""The field for a system prompt, in a real Chromium."""

from __future__ import annotations

import time

import pytest

from chatbot import Chatbot
from tests.chat_models import write_chat_model
from tests.test_browser import one_browser  # noqa: F401  # fixture
from tests.test_browser_page import page, say  # noqa: F401  # fixtures
from tests.ui.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SYSTEM = "你是一只猫。<|im_end|>"


@pytest.fixture(scope="module")
def talker(dialogues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talker") / "qwen2"
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], "qwen2")
    (folder / "generation_config.json").write_text('{"max_reply_tokens": 6}')
    return folder


@pytest.fixture(scope="module")
def server(talker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    options = ("--data-dir", str(folder), "--checkpoint", "default", str(talker))
    with serving(folder, *options) as (address, _):
        yield address


def choose_model(page, name: str) -> None:  # noqa: F811
    page.driver.execute_script("document.querySelector('#checkpoint input').focus()")
    # by its label: the text of an option is empty while the list is still fading in
    page.wait(lambda: page.find(f"[role=option][aria-label={name}]"))[0].click()


def is_shown(page, selector: str) -> bool:  # noqa: F811
    """Whether an element is shown, perhaps below the fold."""
    return any(element.is_displayed() for element in page.find(selector))


def test_the_field_shows_for_a_chat_model_and_its_text_is_kept_with_the_chat(page, talker):  # noqa: F811
    field, bot = "#system textarea", Chatbot.from_pretrained(talker)
    page.set_seed(3)
    assert not is_shown(page, field)  # the bundled bot has none
    choose_model(page, "qwen2")
    page.wait(lambda: is_shown(page, field))
    assert say(page, "system") in page.texts("#system")[0]
    page.fill(field, SYSTEM)
    time.sleep(1)
    assert page.send("你好") == bot.reply(["你好"], 3, system=SYSTEM)
    page.reload()
    page.unfold()
    page.wait(lambda: page.find(field) and page.find(field)[0].get_attribute("value") == SYSTEM)
    page.press_at("#new")
    page.wait(lambda: page.find(field)[0].get_attribute("value") == "")
    page.press(page.find("#saved .x-open")[0])
    page.wait(lambda: page.find(field)[0].get_attribute("value") == SYSTEM)
    page.fill(field, "猫" * 5_000)
    limit = str(bot.max_system_tokens)
    page.wait(lambda: f"大约最多 {limit} 个字" in page.texts("body")[0])

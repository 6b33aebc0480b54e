"""Another way to say a reply, in a real Chromium."""

from __future__ import annotations

import pytest

from chatbot import Chatbot
from tests.test_browser import one_browser  # noqa: F401  # fixture
from tests.test_browser_page import box, page, resize, say, server, versions  # noqa: F401  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.browser]

LAST = "return xianliao.chat.current().messages.slice(-1)[0]"


def test_another_way_to_say_it_is_one_more_version(page):  # noqa: F811
    bot = Chatbot.from_pretrained()
    page.set_seed(2)
    first, button = page.send("周末去哪玩"), "#chat .x-turn.last [aria-label='换个说法']"
    before = box(page, button)
    page.click(say(page, "another"))
    assert page.find("#chat .x-turn.last [aria-label='换个说法']")[0].get_attribute("disabled")
    page.wait(lambda: versions(page) == ["2/2"])
    assert (box(page, button)["left"], box(page, button)["top"]) == (before["left"], before["top"])  # under the pointer
    page.fill("#spread input[type=number]", "2")
    page.wait(lambda: page.driver.execute_script("return localStorage['xianliao.settings']?.endsWith(',2]')"))
    page.click(say(page, "previous"))
    page.wait(lambda: versions(page) == ["1/2"] and page.bot_messages() == [first])
    page.click(say(page, "another"))  # the next number, although the first version is in view
    page.wait(lambda: versions(page) == ["3/3"])
    expected = [bot.reply(["周末去哪玩"], 2, variation=k, spread=s) for k, s in ((1, 1), (2, 2))]
    assert page.bot_messages() == expected[1:]
    last = page.driver.execute_script(LAST)
    assert (last["variation"], last["spread"], last["seed"]) == (2, 2, 2)
    page.click(say(page, "previous"))
    page.wait(lambda: versions(page) == ["2/3"] and page.bot_messages() == expected[:1])
    page.click(say(page, "like"))
    page.wait(lambda: page.in_view("#reasons"))
    page.reload()
    page.wait(lambda: versions(page) == ["2/3"])
    page.unfold()
    page.wait(lambda: page.value("#spread input[type=number]") == "2")


def test_several_replies_are_listed_and_one_of_them_is_chosen(page):  # noqa: F811
    first = page.send("周末去哪玩")
    assert not page.find("#chat .x-option")
    page.press_at("#more")
    page.wait(lambda: versions(page) == ["2/4"])
    options = page.texts("#chat .x-option")
    assert options[0] == first
    assert len(options) == 4
    assert pressed(page) == [1]
    page.press(page.find("#chat .x-option")[3])
    page.wait(lambda: versions(page) == ["4/4"] and page.bot_messages() == options[3:])
    assert pressed(page) == [3]
    assert page.texts("#chat .x-option") == options  # no line moves under the pointer
    assert page.driver.execute_script("return document.activeElement.className") == "x-option"
    page.send("好的")
    assert not page.find("#chat .x-option")  # the choice was made
    assert page.bot_messages()[0] == options[3]


def pressed(page) -> list[int]:  # noqa: F811
    """Numbers of the lines that are marked as shown."""
    lines = page.find("#chat .x-option")
    return [at for at, line in enumerate(lines) if line.get_attribute("aria-pressed") == "true"]


def test_another_way_that_comes_too_late_changes_nothing(page):  # noqa: F811
    page.send("周末去哪玩")
    page.click(say(page, "another"))
    page.press_at("#new")
    page.wait(lambda: not page.find("html.x-offering"))
    assert page.find(".x-example")
    page.press(page.find("#saved .x-open")[0])
    page.wait(lambda: len(page.bot_messages()) == 1 and not versions(page))


def test_the_button_fits_a_phone(page):  # noqa: F811
    resize(page.driver, 360, 740, mobile=True)
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        page.send("周末去哪玩")
        page.click(say(page, "another"))
        page.wait(lambda: versions(page) == ["2/2"])
        (button,) = page.find("#chat [aria-label='换个说法']")
        assert (button.size["width"], button.size["height"]) == (44, 44)
        assert button.get_attribute("title") == say(page, "another")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_after_an_error_the_button_works_again(page):  # noqa: F811
    page.send("周末去哪玩")
    page.driver.execute_script("window.ahead = xianliao.tree.ahead; xianliao.tree.ahead = () => 8")
    page.click(say(page, "another"))
    page.wait(lambda: say(page, "no_more_ways").format(count=8) in page.texts("body")[0])
    page.wait(lambda: not page.find("html.x-offering"))
    assert not page.find(".toast-body.error")
    page.driver.execute_script("xianliao.tree.ahead = window.ahead")
    page.click(say(page, "another"))
    page.wait(lambda: versions(page) == ["2/2"])


def test_after_eight_variants_the_button_says_why_it_is_off(page):  # noqa: F811
    page.send("周末去哪玩")
    assert not page.find(f"#chat [aria-label='{say(page, 'ball')}']")  # this bot has no latent
    page.driver.execute_script(
        "xianliao.tree.lastVariant = () => 8; xianliao.chat.offering(true); xianliao.chat.offering(false)"
    )
    button = page.find("#chat .x-turn.last [aria-label='换个说法']")[0]
    assert button.get_attribute("disabled")
    assert button.get_attribute("title") == say(page, "no_more_ways").format(count=8)

"""A talk on the page in a real browser: typing dots, Escape, actions on hover, dates in the list, the way to the end."""

from __future__ import annotations

import pytest

from tests.screenshots import STORE
from tests.test_browser import Page, data_dir, one_browser, open_browser, page, server  # noqa: F401
from tests.ui.serving import endless_checkpoint, serving
from ui.page.text import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.browser]

ENTER, ESCAPE = "\ue007", "\ue00c"
WATCH_DOTS = """
window.dots = [];
new MutationObserver(() => {
  const dots = document.querySelector("#chat .x-dots");
  if (dots && dots.offsetParent) window.dots.push(dots.ariaLabel);
}).observe(document.body, { childList: true, subtree: true, attributes: true });
"""
VISIBLE = """
return [...document.querySelectorAll("#chat .x-turn.bot")].map(turn => {
  const button = turn.querySelector(".x-actions > .x-button");
  return getComputedStyle(button).opacity === "1";
})
"""


def test_dots_are_shown_until_the_reply_begins(page):  # noqa: F811
    page.driver.execute_script(WATCH_DOTS)
    page.send("你好")
    assert set(page.driver.execute_script("return window.dots")) == {TEXT["zh"]["typing"]}
    assert not page.driver.execute_script("return Boolean(document.querySelector('#chat .x-dots')?.offsetParent)")


def test_escape_stops_a_reply(tmp_path):
    with serving(tmp_path, "--checkpoint", str(endless_checkpoint(tmp_path))) as (address, _):
        driver = open_browser(tmp_path, "zh-CN")
        try:
            page = Page(driver, address)
            page.write("给我讲一个很长的故事")
            box = page.find("#message textarea")[0]
            box.send_keys(ENTER)
            page.wait(lambda: page.find("#message .stop-button") and page.bot_messages())
            box.send_keys(ESCAPE)
            page.wait(lambda: page.find("#message .submit-button") and page.status() == TEXT["zh"]["stopped"])
            assert len(page.bot_messages()) == 1
        finally:
            driver.quit()


def test_actions_of_an_earlier_reply_are_shown_on_hover_and_on_focus(page):  # noqa: F811
    from selenium.webdriver.common.action_chains import ActionChains

    page.send("你好")
    page.send("在吗")
    page.wait(lambda: page.driver.execute_script(VISIBLE) == [False, True])
    ActionChains(page.driver).move_to_element(page.find("#chat .bot.message")[0]).perform()
    page.wait(lambda: page.driver.execute_script(VISIBLE) == [True, True])
    ActionChains(page.driver).move_to_element(page.find("#heading")[0]).perform()
    page.wait(lambda: page.driver.execute_script(VISIBLE) == [False, True])
    page.driver.execute_script("document.querySelector('#chat .x-turn.bot .x-button').focus()")
    page.wait(lambda: page.driver.execute_script(VISIBLE) == [True, True])


def test_the_list_has_dates(page):  # noqa: F811
    page.driver.execute_script(STORE)
    page.reload()
    page.wait(lambda: len(page.saved()) == 15)
    names = [TEXT["zh"][name] for name in ("today", "yesterday", "week", "earlier")]
    headings = page.texts("#saved h2")
    assert headings == [name for name in names if name in headings]  # in this order, each once
    assert headings[-2:] == names[-2:]
    assert page.find("#saved .x-open")[0].get_attribute("title")  # date and time of the last message


def test_a_button_leads_back_to_the_latest_message(page):  # noqa: F811
    for text in ("给我讲个笑话呗" * 20, "周末有什么好看的电影吗" * 20, "你好"):
        page.send(text)
    page.wait(lambda: not page.in_view("#x-to-end"))
    page.driver.execute_script("document.querySelector('#chat').scrollTop = 0")
    page.wait(lambda: page.in_view("#x-to-end"))
    page.press_at("#x-to-end")
    page.wait(lambda: page.in_view("#chat .x-turn.last .message") and not page.in_view("#x-to-end"))


def test_a_phone_shows_the_whole_menu_of_every_chat(page):  # noqa: F811
    size = {"width": 390, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        page.driver.execute_script(STORE)
        page.reload()
        page.wait(lambda: page.find("#message textarea"))
        page.open_sidebar()
        buttons = page.wait(lambda: page.find("#saved .x-more > button"))
        code = "return [...arguments[0]].map(button => getComputedStyle(button).opacity)"
        assert set(page.driver.execute_script(code, buttons)) == {"1"}
        page.press(buttons[-1])
        code = """
        const menu = document.querySelector("#saved .x-menu").getBoundingClientRect();
        return menu.height > 0 && menu.bottom <= document.querySelector("#saved").getBoundingClientRect().bottom + 1
        """
        page.wait(lambda: page.driver.execute_script(code))
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_person_in_crisis_can_call_from_the_reply(page):  # noqa: F811
    calls = "return [...document.querySelectorAll('#chat a')].map(link => link.getAttribute('href'))"
    reply = page.send("我不想活了")
    assert page.driver.execute_script(calls) == ["tel:12356", "tel:110", "tel:120"]
    assert page.texts("#chat .x-fixed") == [TEXT["zh"]["fixed"]]
    assert page.saved() == page.texts("#heading") == [TEXT["zh"]["new_chat"]]  # not the words of the person
    assert not page.find(f"#chat [aria-label='{TEXT['zh']['retry']}']")
    assert not page.in_view("#more")
    # Words of the person and of a model are text, also the same ones.
    change = "xianliao.chat.set({...xianliao.chat.current(), messages: [arguments[0]]})"
    stopped = {"role": "assistant", "text": "请打 110"}
    for message in ({"role": "user", "text": reply}, {"role": "assistant", "text": reply, "seed": 1}, stopped):
        page.driver.execute_script(change, message)
        page.wait(lambda message=message: page.texts("#chat .message") == [message["text"]])
        assert page.driver.execute_script(calls) == []

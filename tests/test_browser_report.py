"""An evaluation's page in a real browser, from a file: languages, sorting, phone width, dark mode, accessibility."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from chatbot.evaluation.grid import Grid
from chatbot.evaluation.report.html import to_html
from chatbot.evaluation.verdict import verdict, warnings
from tests.chatbot.evaluation.test_verdict import checkpoint, full_report, method, report
from tests.test_browser import open_browser
from tests.test_browser_page import axe_source, serious_violations

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@contextmanager
def opened(folder, language: str, content: dict) -> Iterator:
    """A browser that shows the page of a report; its console must stay without errors."""
    page = folder / "report.html"
    page.write_text(to_html(content), encoding="utf-8")
    driver = open_browser(folder, language)
    try:
        driver.get(page.as_uri())
        yield driver
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        driver.quit()


def use_theme(driver, theme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def test_the_report_is_sorted_and_fits_the_phone(tmp_path):
    methods = {
        f"a method with a long name, {number}": method(number, wrd=(number * 7 % 20) / 40) for number in range(20)
    }
    content = report(checkpoint("mine", 3.5, **methods))
    content["verdict"] = verdict(content)
    with opened(tmp_path, "en", content) as driver:
        for summary in driver.find_elements("css selector", "main > details:not([open]) > summary"):
            summary.click()  # twenty methods are folded
        heading = next(
            button for button in driver.find_elements("css selector", "th button") if button.text == "1 - WRD"
        )
        names = "return [...arguments[0].closest('table').tBodies[0].rows].map(row => row.cells[0].textContent)"
        before = driver.execute_script(names, heading)
        heading.click()  # the best first
        order = sorted(range(20), key=lambda number: -(number * 7 % 20))
        assert driver.execute_script(names, heading) == [before[number] for number in order]
        heading.click()
        assert driver.execute_script(names, heading) == [before[number] for number in reversed(order)]
        assert heading.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
        feet = driver.find_elements("css selector", "tfoot th")
        assert {foot.text for foot in feet} == {"units", "people"}  # these rows are not sorted
        folded = driver.find_element("css selector", "main > details > summary")
        folded.click()
        driver.execute_script("dispatchEvent(new Event('beforeprint'))")
        assert not driver.find_elements("css selector", "details:not([open])")  # paper shows everything
        light = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        use_theme(driver, "dark")
        assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") != light
        size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert shading(driver, 0) != shading(driver, 1e6)  # more columns at the right, and none
        for _ in range(2):  # in both languages
            width = driver.execute_script("return document.documentElement.scrollWidth")
            assert width <= 360  # tables scroll by themselves
            driver.find_element("css selector", "#language").click()


def shading(driver, left: float) -> list[tuple]:
    """Colours at the right edge of the first table's last line, after scrolling to the left edge `left`."""
    code = """
    const box = [...document.querySelectorAll(".scroll")].find(e => e.scrollWidth > e.clientWidth + 40);
    box.scrollIntoView();
    box.scrollLeft = arguments[0];
    const { right, bottom } = box.getBoundingClientRect();
    return [right - 6, bottom - 3];
    """
    x, y = driver.execute_script(code, left)
    clip = {"x": x, "y": y + driver.execute_script("return scrollY"), "width": 6, "height": 2, "scale": 1}
    picture = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return list(Image.open(io.BytesIO(base64.b64decode(picture["data"]))).convert("RGB").getdata())


ENGLISH, CHINESE = "Replies side by side", "同一句话，各种方法怎么回"
"""First heading of the page."""


@pytest.mark.parametrize("checkpoints", [1, 2])
def test_the_page_of_eight_contexts_is_short_and_begins_with_verdict_and_replies(tmp_path, checkpoints):
    methods = Grid.read().few
    rows = full_report()["checkpoints"][0]["decoding"]["one"]
    parts = [checkpoint(f"bot {number}", 3.5, **dict.fromkeys(methods, rows)) for number in range(checkpoints)]
    content = report(*parts, contexts=8, limited_by="--contexts", left_out_methods=8, baselines={"unigram": 5.0})
    content["methods"] = {name: Grid.read().about[name] for name in methods}
    content["reference"] = full_report()["reference"]
    replies = [[part["name"], name, f"{name}，今天天气不错呀", "eos"] for part in parts for name in methods]
    example = {"context": ["在吗", "在呀", "今天去哪儿玩"], "reference": "去公园吧，天气挺好的", "replies": replies}
    content["examples"] = [example] * 8
    content["verdict"], content["warnings"] = verdict(content), warnings(content, [None] * checkpoints, __file__)
    for language in ("en", "zh-CN"):
        folder = tmp_path / language
        folder.mkdir()
        with opened(folder, language, content) as driver:
            size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            assert driver.execute_script("return document.documentElement.scrollHeight") <= 4000
            top = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
            tops = [driver.execute_script(top, part) for part in (".verdict", ".warning", ".example", "main > details")]
            assert tops == sorted(tops)
            assert tops[2] < 500
            assert len(driver.find_elements("css selector", ".example")) == 8


@pytest.mark.parametrize(("language", "first", "other"), [("zh-CN", CHINESE, ENGLISH), ("en", ENGLISH, CHINESE)])
def test_the_report_speaks_the_language_of_the_browser_and_remembers_another_choice(tmp_path, language, first, other):
    with opened(tmp_path, language, full_report()) as driver:

        def state() -> list:
            headings = [heading.text for heading in driver.find_elements("css selector", "h2")]
            script = (
                "return [document.documentElement.lang, document.title, document.querySelector('.verdict').ariaLabel]"
            )
            return [headings[0], *driver.execute_script(script)]

        states = {
            CHINESE: ["zh-CN", "mine 的评测：数据 chats（验证集）", "结论"],
            ENGLISH: ["en", "Evaluation of mine on chats (valid split)", "verdict"],
        }
        assert state() == [first, *states[first]]
        driver.find_element("css selector", "#language").click()
        assert state() == [other, *states[other]]
        for _ in range(20):  # a busy Chromium hands the storage from one document to the next a moment later
            driver.get(driver.current_url)
            if state() == [other, *states[other]]:
                break
            time.sleep(0.5)
        assert state() == [other, *states[other]]
        label = driver.find_element("css selector", "figure svg").get_attribute("aria-label")
        assert label == {ENGLISH: "one: replies without an end", CHINESE: "one：没有结束的回复"}[other]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_report(tmp_path, theme):
    source = axe_source()
    with opened(tmp_path, "zh-CN", full_report()) as driver:
        use_theme(driver, theme)
        assert serious_violations(driver, source) == []

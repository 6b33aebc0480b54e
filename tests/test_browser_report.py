"""An evaluation's page in a real browser, from a file: languages, sorting, phone width, dark mode, accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chatbot.evaluation.report.html import to_html
from chatbot.evaluation.verdict import verdict
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
        light = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        use_theme(driver, "dark")
        assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") != light
        size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for _ in range(2):  # in both languages
            width = driver.execute_script("return document.documentElement.scrollWidth")
            assert width <= 360  # tables scroll by themselves
            driver.find_element("css selector", "#language").click()


@pytest.mark.parametrize(("language", "first", "other"), [("zh-CN", "怎么看这些数", "In plain words"),
                                                          ("en", "In plain words", "怎么看这些数")])  # fmt: skip
def test_the_report_speaks_the_language_of_the_browser_and_remembers_another_choice(tmp_path, language, first, other):
    with opened(tmp_path, language, full_report()) as driver:

        def state() -> list:
            headings = [heading.text for heading in driver.find_elements("css selector", "h2")]
            script = (
                "return [document.documentElement.lang, document.title, document.querySelector('.verdict').ariaLabel]"
            )
            return [headings[0], *driver.execute_script(script)]

        states = {
            "怎么看这些数": ["zh-CN", "mine 的评测：数据 chats（验证集）", "结论"],
            "In plain words": ["en", "Evaluation of mine on chats (valid split)", "verdict"],
        }
        assert state() == [first, *states[first]]
        driver.find_element("css selector", "#language").click()
        assert state() == [other, *states[other]]
        driver.get(driver.current_url)
        assert state() == [other, *states[other]]
        label = driver.find_element("css selector", "figure svg").get_attribute("aria-label")
        assert label == {"In plain words": "one: replies without an end", "怎么看这些数": "one：没有结束的回复"}[other]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_report(tmp_path, theme):
    source = axe_source()
    with opened(tmp_path, "zh-CN", full_report()) as driver:
        use_theme(driver, theme)
        assert serious_violations(driver, source) == []

"""An evaluation's page in a real browser, from a file: sorting, phone width, dark mode, no fault in the console."""

from __future__ import annotations

import pytest

from chatbot.evaluation.report.html import to_html
from chatbot.evaluation.verdict import verdict
from tests.chatbot.evaluation.test_verdict import checkpoint, method, report
from tests.test_browser import open_browser

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_the_report_is_sorted_and_fits_the_phone(tmp_path):
    methods = {
        f"a method with a long name, {number}": method(number, wrd=(number * 7 % 20) / 40) for number in range(20)
    }
    content = report(checkpoint("mine", 3.5, **methods))
    content["verdict"] = verdict(content)
    page = tmp_path / "report.html"
    page.write_text(to_html(content), encoding="utf-8")
    driver = open_browser(tmp_path, "en")
    try:
        driver.get(page.as_uri())
        heading = next(found for found in driver.find_elements("css selector", "th button") if found.text == "1 - WRD")
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
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
        assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") != light
        size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert (
            driver.execute_script("return document.documentElement.scrollWidth") <= 360
        )  # tables scroll by themselves
        driver.save_screenshot(str(tmp_path / "phone.png"))
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        driver.quit()

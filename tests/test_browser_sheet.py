"""The rating sheet in a real browser: keyboard, progress kept over a reload, and a download that is read back."""

from __future__ import annotations

import json
import time

import pytest

from chatbot.evaluation.answering import Context
from chatbot.evaluation.aptness.scores import read_scores
from chatbot.evaluation.aptness.sheets import REFERENCE, Key, make_rows, write_sheets
from tests.test_browser import open_browser

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def sheet_of_four(folder):
    """A sheet of four rows with two replies each, and its key."""
    contexts = [Context((f"第{number}句 <b>",), f"回{number}") for number in range(4)]
    key = Key(0, [REFERENCE, "random reply"], make_rows("x", contexts, {}, 0, 0))
    return *write_sheets(key, folder, 1), key


def test_a_person_rates_with_the_keyboard(tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    page, key = sheet_of_four(tmp_path)
    driver = open_browser(tmp_path, "zh-CN")
    try:
        driver.get(page.as_uri())
        assert "<b>" in driver.find_element(By.ID, "context").text
        assert not driver.find_element(By.ID, "save").is_enabled()  # the file would be empty
        ActionChains(driver).send_keys("2").send_keys("0").send_keys("1").perform()

        def one_is_rated(_driver) -> bool:
            return "已评 1 / 4" in driver.find_element(By.ID, "count").text

        WebDriverWait(driver, 30).until(one_is_rated)
        # The progress is kept. The browser's processes hand the storage on without waiting for each other, so that on a
        # busy machine a reload in the same moment may come too early: hence several.
        WebDriverWait(driver, 30).until(lambda _: driver.refresh() or one_is_rated(driver))
        driver.find_elements(By.CSS_SELECTOR, ".marks button")[2].click()  # the first reply of row 2 again: 2
        for _ in range(5):
            ActionChains(driver).send_keys("1").perform()
        assert "第 4 段，已评 4 / 4" in driver.find_element(By.ID, "count").text
        assert driver.find_element(By.ID, "done").text == "全部评完了，请下载评分。"
        driver.find_element(By.ID, "save").click()
        path = tmp_path / "downloads" / "scores-1.jsonl"
        end = time.monotonic() + 10
        while not path.is_file() and time.monotonic() < end:
            time.sleep(0.05)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["scores"] for line in lines] == [[2, 0], [2, 1], [1, 1], [1, 1]]
        assert set(read_scores(path, key).scores) == {0, 1, 2, 3}
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        driver.save_screenshot(str(tmp_path / "sheet.png"))
    finally:
        driver.quit()


def test_a_skipped_chat_comes_again_and_a_correction_stays_where_it_is(tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    page, _ = sheet_of_four(tmp_path)
    driver = open_browser(tmp_path, "zh-CN")
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def press(*keys: str) -> str:
        for key in keys:
            ActionChains(driver).send_keys(key).perform()
        return driver.execute_script("return document.querySelector('#count').textContent")

    right, left = "\ue014", "\ue012"
    try:
        driver.get(page.as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        code = "return [...document.querySelectorAll('.marks button')].map(e => [e.offsetWidth, e.offsetHeight])"
        assert min(side for size in driver.execute_script(code) for side in size) >= 44
        assert press(right, "1", "1", "1", "1", "1", "1") == "第 1 段，已评 3 / 4 段"
        assert press(right, "0") == "第 2 段，已评 3 / 4 段"
        assert press(left, "1", "1") == "第 1 段，已评 4 / 4 段"
    finally:
        driver.quit()

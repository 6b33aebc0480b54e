"""The page in a real, headless Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from chatbot import Chatbot
from chatbot.checkpoint import resolve
from tests.conftest import ROOT
from ui.text import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.browser]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1000,800",
)


@contextmanager
def serving(checkpoint: str | Path):
    """A server on a free port; yields its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "ui", "--port", str(port), "--checkpoint", str(checkpoint)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if json.load(urlopen(f"{address}/healthz", timeout=2))["status"] == "ok":
                    break
            except OSError:
                assert process.poll() is None, process.stderr.read().decode()
                time.sleep(0.5)
        yield address, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server():
    with serving("default") as running:
        yield running


def open_browser(folder: Path, language: str):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--lang={language}", f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(DRIVER))


class Page:
    """What a person does with the page."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.find("#message textarea"))

    def find(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition, seconds: float = 30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            result = condition()
            if result:
                return result
            time.sleep(0.1)
        raise AssertionError(f"nothing happened in {seconds} s; the page says: {self.texts('body')[:1]}")

    def write(self, text: str) -> None:
        box = self.find("#message textarea")[0]
        code = "const e = arguments[0]; Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set"
        code += ".call(e, arguments[1]); e.dispatchEvent(new Event('input', {bubbles: true}))"
        self.driver.execute_script(code, box, text)

    def send(self, text: str) -> str:
        """Types a message, presses Enter and waits for the finished reply."""
        before = len(self.bot_messages())
        self.write(text)
        self.find("#message textarea")[0].send_keys("\ue007")
        self.wait(lambda: len(self.bot_messages()) == before + 1 and self.idle())
        time.sleep(0.5)  # the box is emptied a moment later; a person types more slowly
        return self.bot_messages()[-1]

    def texts(self, selector: str) -> list[str]:
        """Visible texts, read in one go: the page replaces its elements while a reply grows."""
        code = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim()).filter(Boolean)"
        return self.driver.execute_script(code, selector)

    def status(self) -> str:
        return "".join(self.texts("#status"))

    def idle(self) -> bool:
        """The status line under the chat is there and the next message can be sent."""
        return bool(self.status()) and bool(self.find("#message .submit-button"))

    def bot_messages(self) -> list[str]:
        return self.texts("#chat .bot.message")

    def user_messages(self) -> list[str]:
        return self.texts("#chat .user.message")

    def click(self, *labels: str) -> None:
        found = [
            b for b in self.find("button") if (b.get_attribute("aria-label") or b.get_attribute("title")) in labels
        ]
        assert found, [(b.get_attribute("aria-label"), b.get_attribute("title"), b.text) for b in self.find("button")]
        self.driver.execute_script("arguments[0].click()", found[-1])

    def set_seed(self, seed: int) -> None:
        if not self.find("#seed input"):
            self.driver.execute_script("arguments[0].click()", self.find("button.label-wrap")[0])
        field = self.wait(lambda: self.find("#seed input"))[0]
        field.clear()
        field.send_keys(str(seed), "\t")


@pytest.fixture
def page(server, tmp_path):
    driver = open_browser(tmp_path / "zh", "zh-CN")
    try:
        yield Page(driver, server[0])
    finally:
        driver.quit()


def test_a_greeting_is_answered_in_chinese(page):
    reply = page.send("你好")
    assert re.search("[\u4e00-\u9fff]", reply)
    assert TEXT["zh"]["description"][:10] in page.texts("body")[0]
    assert page.user_messages() == ["你好"]


def test_the_page_gives_the_reply_of_the_same_seed_elsewhere(page):
    bot = Chatbot.from_pretrained()
    page.set_seed(1)
    first = page.send("你好")
    assert first == bot.reply(["你好"], seed=1)
    assert page.send("今天吃什么") == bot.reply(["你好", first, "今天吃什么"], seed=1)


def test_retry_undo_and_clear(page):
    seen = {page.send("我想去旅行")}
    for _ in range(5):  # another seed each time: some differ
        before = page.status()
        page.click("重试", "Retry")
        page.wait(lambda before=before: page.idle() and page.status() != before)
        (reply,) = page.bot_messages()
        seen.add(reply)
    assert len(seen) > 1
    page.click("撤销", "Undo")
    page.wait(lambda: not page.user_messages())
    assert page.find("#message textarea")[0].get_attribute("value") == "我想去旅行"
    page.send("换一句")
    page.click("清空对话", "Clear", "清除")
    page.wait(lambda: not page.user_messages() and not page.bot_messages())


def test_empty_and_huge_messages_get_a_notice_and_are_not_sent(page):
    for text, words in ((" ", TEXT["zh"]["empty"]), ("长" * 100_000, "100000")):
        page.write(text)
        page.find("#message textarea")[0].send_keys("\ue007")
        page.wait(lambda words=words: words in page.texts("body")[0])
        assert page.user_messages() == []
    page.write("")
    assert page.send("你好")


def test_what_is_said_is_text(page):
    text = "<img src=x onerror=\"document.title='pwned'\"> **粗** &lt; [SEP]"
    page.send(text)
    assert [said.replace("\u200b", "") for said in page.user_messages()] == [text]
    assert "pwned" not in page.driver.title
    assert not page.find("#chat .message img[src='x']")


def test_no_console_error_and_no_other_host(page):
    page.send("你好")
    errors = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    requests = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    urls = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
    outside = [url for url in urls if url.startswith("http") and not url.startswith("http://127.0.0.1:")]
    assert urls
    assert not outside


def test_english_browsers_get_english_words(server, tmp_path):
    driver = open_browser(tmp_path / "en", "en-US")
    try:
        page = Page(driver, server[0])
        page.wait(lambda: TEXT["en"]["description"][:20] in page.texts("body")[0])
        page.send("你好")
        assert "tokens/s" in page.status()
    finally:
        driver.quit()


def test_stop_ends_the_reply(tmp_path):
    """On a bot that is made to talk for thousands of tokens. Gradio sometimes takes the stopped reply off the page."""
    endless = tmp_path / "endless"
    shutil.copytree(resolve("default"), endless)
    settings = {"floor_start_tokens": 5000, "floor_delta_tokens": 32, "min_reply_tokens": 4000}
    (endless / "generation_config.json").write_text(json.dumps(settings))
    with serving(endless) as (address, _):
        driver = open_browser(tmp_path / "stop", "zh-CN")
        try:
            page = Page(driver, address)
            page.write("给我讲一个很长的故事")
            page.find("#message textarea")[0].send_keys("\ue007")
            page.wait(lambda: len("".join(page.bot_messages())) > 10 and page.find("#message .stop-button"))
            driver.execute_script("arguments[0].click()", page.find("#message .stop-button")[0])
            page.wait(lambda: page.find("#message .submit-button"))
            time.sleep(1)
            said = page.bot_messages()
            time.sleep(1)
            assert page.bot_messages() == said
            assert len("".join(said)) < 4000
            assert page.user_messages() == ["给我讲一个很长的故事"]
        finally:
            driver.quit()


def test_sigterm_ends_the_server_with_a_tab_open(server, tmp_path):
    """The last test of the file: it ends the server."""
    address, process = server
    driver = open_browser(tmp_path / "last", "zh-CN")
    try:
        Page(driver, address)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
    finally:
        driver.quit()

"""The page in a real, headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from chatbot import Chatbot
from tests.records import read_records
from tests.ui.serving import endless_checkpoint, free_port, serving
from ui.page.text import PERSONAS, TEXT

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


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(data_dir):
    with serving(data_dir, "--data-dir", str(data_dir)) as running:
        yield running


def open_browser(folder: Path, language: str, *flags: str):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, *flags, f"--lang={language}", f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    (folder / "downloads").mkdir(parents=True, exist_ok=True)
    preferences = {
        "intl.accept_languages": language,
        "download.default_directory": str(folder / "downloads"),
        "profile.default_content_setting_values.automatic_downloads": 1,
    }
    options.add_experimental_option("prefs", preferences)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(DRIVER))


SEED = "#seed input, #seed textarea"
SCRIPT_VALUES = ("null", "undefined", "NaN", "[object Object]")
"""Values of a script that must not be shown as text."""


class Page:
    """What a person does with the page."""

    def __init__(self, driver, address: str):
        self.driver, self.errors = driver, []
        driver.get(address)
        self.wait(lambda: self.find("#message textarea"))

    def find(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition, seconds: float = 30, step: float = 0.1):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            result = condition()
            if result:
                return result
            time.sleep(step)
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

    def click(self, *labels: str, last: bool = True) -> None:
        """Presses the last (or first) button of one of these names."""
        code = "return [...document.querySelectorAll('button')].filter(b => arguments[0].includes("
        code += "b.getAttribute('aria-label') || b.innerText.trim()))"
        buttons = self.wait(lambda: self.driver.execute_script(code, labels))
        self.press(buttons[-1 if last else 0])

    def press(self, element) -> None:
        self.driver.execute_script("arguments[0].click()", element)

    def press_at(self, selector: str) -> None:
        self.press(self.wait(lambda: self.find(selector))[0])

    def choose_file(self, path: Path) -> None:
        """Import a file; the browser's own dialogue does not open for a script, its input is there all the same."""
        self.all_chats("import")
        self.wait(lambda: self.find("#import-file"))[0].send_keys(str(path))

    def unfold(self) -> None:
        """Opens the settings."""
        if not self.in_view("#panel"):
            self.press_at("#settings-button")
        for name, field in (("more-settings", SEED), ("own-persona", "#persona textarea")):
            if not self.in_view(field):
                self.press_at(f"#{name} button.label-wrap")
                self.wait(lambda field=field: self.find(field))

    def set_seed(self, seed: int) -> None:
        self.unfold()
        self.fill(SEED, str(seed))

    def fill(self, selector: str, text: str) -> None:
        """Writes into a field and leaves it."""
        field = self.wait(lambda: self.find(selector))[0]
        code = "const e = arguments[0], kind = e.tagName === 'TEXTAREA' ? HTMLTextAreaElement : HTMLInputElement;"
        code += " e.focus(); Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(e, arguments[1]);"
        code += " e.dispatchEvent(new Event('input', {bubbles: true})); e.blur()"
        self.driver.execute_script(code, field, text)

    def open_sidebar(self) -> None:
        if not self.in_view("#new"):
            self.press_at("#side-button")
            self.wait(lambda: self.in_view("#new"))

    def in_view(self, selector: str) -> bool:
        code = (
            "const e = document.querySelector(arguments[0]); if (!e) return false; const r = e.getBoundingClientRect();"
        )
        code += " return r.width > 0 && r.left >= 0 && r.right <= innerWidth && r.top >= 0 && r.bottom <= innerHeight"
        return self.driver.execute_script(code, selector)

    def saved(self) -> list[str]:
        return self.texts("#saved .x-open")

    def menu(self, row: int, name: str) -> None:
        """Opens the menu of a saved conversation and chooses an action."""
        self.press(self.find("#saved .x-more > button")[row])
        self.press_at(f"#saved .x-menu [data-name={name}]")

    def all_chats(self, name: str) -> None:
        """Opens the menu of all conversations and chooses an action."""
        self.press_at("#all-chats")
        self.press_at(f"#side .x-menu [data-name={name}]")

    def value(self, selector: str) -> str | None:
        """What is in a field, read in one go; None while the page is loading and has none."""
        return self.driver.execute_script("return document.querySelector(arguments[0])?.value", selector)

    def reload(self) -> None:
        """Leaves the page and opens it again. What the console says of requests that this ends is no fault."""
        address = self.driver.current_url
        self.errors += self.new_errors()
        self.driver.get(f"{address.rstrip('/')}/robots.txt")
        self.new_errors()
        self.driver.get(address)

    def new_errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def faults(self) -> list[str]:
        """Errors in the console, requests to anything but this server, and values of scripts that are shown."""
        errors = self.errors + self.new_errors()
        requests = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
        assert urls
        outside = [url for url in urls if url.startswith(("http", "ws")) and "//127.0.0.1:" not in url]
        shown = [line.strip() for text in self.texts("body") for line in text.splitlines()]
        return errors + outside + [line for line in shown if line in SCRIPT_VALUES]


@pytest.fixture(scope="module", name="driver")
def one_browser(tmp_path_factory):
    """One browser for the tests of a file; each test begins with an empty storage."""
    folder = tmp_path_factory.mktemp("browser")
    driver = open_browser(folder, "zh-CN")
    driver.folder = folder
    yield driver
    driver.quit()


def new_page(driver, address: str) -> Page:
    """The page as a first visitor sees it, in a browser that other tests have used."""
    driver.get(f"{address}/robots.txt")
    driver.execute_script("localStorage.clear(); sessionStorage.clear()")
    driver.delete_all_cookies()
    driver.get_log("browser")  # of requests that leaving the page of the test before has ended
    return Page(driver, address)


@pytest.fixture
def page(server, driver):
    page = new_page(driver, server[0])
    yield page
    assert page.faults() == []


@pytest.fixture(scope="module")
def bot() -> Chatbot:
    return Chatbot.from_pretrained()


def test_a_greeting_is_answered_in_chinese(page):
    reply = page.send("你好")
    assert re.search("[\u4e00-\u9fff]", reply)
    assert TEXT["zh"]["description"][:10] in page.texts("body")[0]
    assert page.user_messages() == ["你好"]


@pytest.mark.alone
def test_the_first_token_comes_within_a_second(page):
    page.send("你好")
    waits = []
    for text in ("吃了吗", "今天天气真好", "周末去哪玩"):
        before = len(page.bot_messages())
        page.write(text)
        sent = time.monotonic()
        page.find("#message textarea")[0].send_keys("\ue007")
        page.wait(lambda before=before: len(page.bot_messages()) > before, step=0.02)
        waits.append(time.monotonic() - sent)
        page.wait(page.idle)
        time.sleep(0.5)
    print("first token after", sorted(waits), "s")
    assert sorted(waits)[1] <= 1


def test_the_page_gives_the_reply_of_the_same_seed_elsewhere(page, bot):
    page.set_seed(1)
    first = page.send("你好")
    assert first == bot.reply(["你好"], seed=1)
    assert page.send("今天吃什么") == bot.reply(["你好", first, "今天吃什么"], seed=1)


def test_retry_undo_and_clear(page):
    seen = {page.send("我想去旅行")}
    for _ in range(3):
        before = page.status()
        page.click("重试")
        (reply,) = page.wait(lambda before=before: page.idle() and page.status() != before and page.bot_messages())
        seen.add(reply)
    assert len(seen) >= 3, seen  # however sure the bot is, trying again says something else
    page.click("撤回")
    page.wait(lambda: not page.user_messages())
    assert page.value("#message textarea") == "我想去旅行"
    page.send("换一句")
    page.click(TEXT["zh"]["new_chat"])
    page.wait(lambda: not page.user_messages() and not page.bot_messages())


def test_edit_forgets_what_came_after_and_answers_anew(page, bot):
    page.set_seed(3)
    page.send("你好")
    page.send("吃了吗")
    page.click("编辑", last=False)
    page.fill("#chat .edit-textarea", "在干嘛")
    page.click("发送", last=False)
    page.wait(lambda: page.user_messages() == ["在干嘛"] and len(page.bot_messages()) == 1 and page.idle())
    assert page.bot_messages() == [bot.reply(["在干嘛"], seed=3)]


def test_empty_and_huge_messages_get_a_notice_and_are_not_sent(page):
    for text, words in ((" ", TEXT["zh"]["empty"]), ("长" * 100_000, "100000")):
        page.write(text)
        page.find("#message textarea")[0].send_keys("\ue007")
        page.wait(lambda words=words: words in "".join(page.texts("#x-notice")))
        assert not page.find(".toast-body.error")  # nothing has failed
        assert page.user_messages() == []
        assert page.value("#message textarea") == text  # nothing is lost
    page.write("")
    assert page.send("你好")


def test_what_is_said_is_text(page):
    texts = [
        "<img src=x onerror=\"document.title='pwned'\"> **粗** &lt; [SEP]",
        "<script>document.title='pwned'</script>[CLS][PAD][UNK]</s><|im_end|>",
        "# 标题\n- [链接](javascript:alert(1)) `代码` $x^2$ $$x^2$$",
    ]
    for text in texts:
        page.send(text)
    assert [shown.replace("\u200b", "") for shown in page.user_messages()] == texts
    assert "pwned" not in page.driver.title
    assert not page.find("#chat .message img[src='x']")
    assert not page.find("#chat .message a, #chat .message h1, #chat .message code, #chat .message strong")


def test_characters_that_turn_the_text_around_do_nothing(page):
    page.send("你\u202e好\u2066吗\x07")
    assert page.user_messages() == ["你�好�吗�"]


def test_enter_that_ends_a_composition_does_not_send(page):
    """As Chinese input methods use it: through the browser's own composition, and as other browsers report it."""
    box = page.find("#message textarea")[0]
    box.click()
    page.driver.execute_cdp_cmd("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    for kind in ("rawKeyDown", "keyUp"):
        event = {"type": kind, "key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
        page.driver.execute_cdp_cmd("Input.dispatchKeyEvent", event)
    page.driver.execute_cdp_cmd("Input.insertText", {"text": "你好"})
    for kind in ("keydown", "keypress"):
        code = "arguments[0].dispatchEvent(new KeyboardEvent(arguments[1], {key: 'Enter', code: 'Enter', keyCode: 13,"
        code += " bubbles: true, cancelable: true, isComposing: true}))"
        page.driver.execute_script(code, box, kind)
    time.sleep(1)
    assert page.user_messages() == []
    assert page.value("#message textarea") == "你好"
    box.send_keys("\ue008\ue007\ue000吗")  # shift and enter begin a new line
    assert page.user_messages() == []
    box.send_keys("\ue007")
    page.wait(lambda: page.user_messages() == ["你好\n吗"] and page.idle())


def test_presets_set_the_sliders(page, bot):
    page.unfold()
    for index, expected in enumerate(("0.4", str(bot.settings.temperature), "0.9")):
        page.press(page.wait(lambda: page.find("#preset input"))[(0, 1, 2)[index]])
        page.wait(lambda expected=expected: page.value("#temperature input[type=number]") == expected)
    assert page.value("#top-p input[type=number]") == "0.95"
    page.set_seed(5)
    assert page.send("你好") == bot.reply(["你好"], seed=5, temperature=0.9, top_p=0.95)


def test_what_is_above_the_divider_is_no_context(page, bot):
    page.set_seed(7)
    page.send("我养了一只猫")
    page.press_at("#divide")
    page.wait(lambda: page.texts("#chat .x-divider") == [TEXT["zh"]["divider"]])
    assert page.send("它叫什么") == bot.reply(["它叫什么"], seed=7)
    page.click("撤回")
    page.wait(lambda: page.user_messages() == ["我养了一只猫"])
    page.click("撤回")
    page.wait(lambda: not page.texts("#chat .x-divider"))


def test_a_persona_is_what_was_said_before(page, bot):
    page.set_seed(2)  # opens the settings
    page.fill("#persona textarea", "\n".join(PERSONAS["cat"]))
    page.wait(lambda: page.driver.execute_script("return true"))
    time.sleep(1)
    assert page.send("你好") == bot.reply([*PERSONAS["cat"], "你好"], seed=2)


def test_chats_are_saved_named_and_deleted_and_go_to_files(page):
    page.send("第一段对话")
    first = page.bot_messages()
    page.open_sidebar()
    page.click(TEXT["zh"]["new_chat"])
    page.wait(lambda: not page.user_messages())
    page.send("第二段对话")
    page.wait(lambda: page.saved() == ["第二段对话", "第一段对话"])
    page.menu(0, "rename")
    page.fill("#saved .x-rename", "改过的名字")
    page.wait(lambda: page.saved() == ["改过的名字", "第一段对话"])
    page.press(page.find("#saved .x-open")[1])
    page.wait(lambda: page.user_messages() == ["第一段对话"] and page.bot_messages() == first)
    for count, (name, kind) in enumerate((("export_json", "json"), ("export_markdown", "md")), 3):
        page.menu(1 if kind == "json" else 2, name)
        (path,) = page.wait(lambda kind=kind: list((page.driver.folder / "downloads").glob(f"*.{kind}")))
        page.choose_file(path)
        page.wait(lambda count=count: len(page.saved()) == count)
        assert page.user_messages() == ["第一段对话"]
        assert page.bot_messages() == first
    page.driver.execute_script("window.confirm = () => true")
    page.menu(0, "delete")
    page.wait(lambda: len(page.saved()) == 3 and not page.user_messages())
    page.reload()
    page.wait(lambda: page.find("#message textarea"))
    page.open_sidebar()
    page.wait(lambda: len(page.saved()) == 3)
    page.driver.execute_script("window.confirm = () => true")
    page.all_chats("delete_all")
    page.wait(lambda: not page.saved())
    assert (
        page.driver.execute_script("return Object.keys(localStorage).filter(k => k.startsWith('xianliao.chat'))") == []
    )


def test_a_file_that_is_no_conversation_gets_a_notice(page, tmp_path):
    (tmp_path / "bad.json").write_text('{"a": [')
    page.send("你好")
    page.open_sidebar()
    page.choose_file(tmp_path / "bad.json")
    page.wait(lambda: TEXT["zh"]["not_a_file"] in page.texts("body")[0])
    assert page.user_messages() == ["你好"]


def test_a_notice_shows_the_text_of_a_file_as_text(page, tmp_path):
    """Gradio takes a notice for HTML, so an element in a file of somebody else would be on the page."""
    mark = "<img src=x onerror=alert(1)>"
    (tmp_path / "evil.md").write_text(f"# t\n\n#{mark}\n\nhi\n")
    page.driver.execute_script(
        "new MutationObserver(() => { if (document.querySelector('img[onerror]')) document.title = 'injected'; })"
        ".observe(document, { childList: true, subtree: true });"
    )
    page.open_sidebar()
    page.choose_file(tmp_path / "evil.md")
    page.wait(lambda: mark in "".join(page.texts("#x-notice")))
    assert not page.find("img[onerror]")
    assert page.driver.title != "injected"


def test_likes_and_reasons_are_written_where_prepare_reads_them(page, data_dir):
    (data_dir / "feedback.jsonl").unlink(missing_ok=True)
    reply = page.send("你好")
    page.click("赞")
    page.wait(lambda: page.find("#reasons input"))
    page.press(page.find("#reasons input")[0])
    page.fill("#why input[type=text], #why textarea", "有意思")
    assert TEXT["zh"]["feedback_note"] in page.texts("#why")[0]
    page.press_at("#send-feedback")
    page.wait(lambda: not page.in_view("#reasons") and page.texts("#x-notice") == [TEXT["zh"]["thanks"]])
    other = page.send("再见")
    page.click("踩")
    page.wait(lambda: len(page.find("#reasons input")) == 4)  # what one can dislike
    lines = [json.loads(line) for line in (data_dir / "feedback.jsonl").read_text().splitlines() if line.strip()]
    assert [line["rating"] for line in lines] == ["like", "dislike"]
    assert [message["content"] for message in lines[0]["messages"]] == ["你好", reply]
    assert (lines[0]["reasons"], lines[0]["comment"]) == (["on_topic"], "有意思")
    assert lines[0]["model"] == "default"
    assert lines[1]["messages"][-1]["content"] == other
    records = [(turns, reason) for _, turns, reason in read_records(data_dir / "feedback.jsonl")]
    assert records == [(["你好", reply], None), (None, "disliked")]


def test_english_browsers_get_english_words(server, tmp_path):
    driver = open_browser(tmp_path, "en-US")
    try:
        page = Page(driver, server[0])
        page.wait(lambda: TEXT["en"]["description"][:20] in page.texts("body")[0])
        page.send("你好")
        assert "tokens/s" in page.status()
        assert TEXT["en"]["more"] in page.texts("#more")
        assert page.faults() == []
    finally:
        driver.quit()


def test_a_phone_shows_all_of_it(server, tmp_path):
    driver = open_browser(tmp_path, "zh-CN")
    try:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        page = Page(driver, server[0])
        page.send("你好")
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        for selector in ("#message textarea", "#message .submit-button", "#more", "#chat .bot.message"):
            assert page.in_view(selector), selector
        page.open_sidebar()
        page.wait(lambda: page.saved() == ["你好"])
        assert page.faults() == []
    finally:
        driver.quit()


def test_stop_keeps_what_was_said(tmp_path, data_dir):
    """On another checkpoint, chosen on the page, that is made to talk for thousands of tokens."""
    endless = endless_checkpoint(tmp_path)
    with serving(data_dir, "--checkpoint", "default", str(endless)) as (address, _):
        driver = open_browser(tmp_path, "zh-CN")
        try:
            page = Page(driver, address)
            page.unfold()
            page.find("#checkpoint input")[0].click()
            assert page.texts("#heading") == [TEXT["zh"]["name"]]
            page.wait(lambda: page.find("[role=option][aria-label=endless]"))[0].click()
            page.wait(lambda: page.texts("#heading") == ["endless"])
            assert "你好，我是endless" in page.texts(".x-welcome h2")[0]
            for count in range(1, 4):
                page.write(f"给我讲一个很长的故事，第{count}个")
                page.find("#message textarea")[0].send_keys("\ue007")
                page.wait(lambda: len(page.bot_messages()) == count and len(page.bot_messages()[-1]) > 20)  # noqa: B023
                page.press(page.wait(lambda: page.find("#message .stop-button"))[0])
                page.wait(lambda: page.find("#message .submit-button") and page.status() == TEXT["zh"]["stopped"])
                time.sleep(0.5)
                replies = page.bot_messages()
                assert len(replies) == count
                assert all(len(text) > 20 for text in replies)
                time.sleep(1)
                assert page.bot_messages() == replies
            page.write("说到一半")
            page.find("#message textarea")[0].send_keys("\ue007")
            page.wait(lambda: page.find("#message .stop-button"))
            page.write("还没说完呢")  # stays in the box while the reply is under way
            page.find("#message textarea")[0].send_keys("\ue007")
            time.sleep(1)
            assert page.value("#message textarea") == "还没说完呢"
            assert page.user_messages()[-1] == "说到一半"
            page.press_at("#divide")  # stops the reply first
            page.wait(lambda: page.texts("#chat .x-divider"))
            page.write("")
            time.sleep(1)
            before = page.bot_messages()
            driver.refresh()
            page.wait(lambda: page.bot_messages() == before)
            assert live_replies(address) == 0
        finally:
            driver.quit()


def live_replies(address: str) -> float:
    shown = urlopen(f"{address}/metrics", timeout=5).read().decode()
    return sum(float(value) for value in re.findall(r"^xianliao_live_replies(?:{.*})? (\S+)$", shown, re.MULTILINE))


def test_a_tab_goes_on_after_the_server_was_killed_and_started_again(tmp_path, data_dir, bot):
    port = free_port()
    driver = open_browser(tmp_path, "zh-CN")
    try:
        with serving(data_dir, port=port) as (address, process):
            page = Page(driver, address)
            page.set_seed(1)
            first = page.send("你好")
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.write("今天吃什么")
            page.find("#message textarea")[0].send_keys("\ue007")
            shown = page.wait(lambda: page.texts(".toast-body"))  # the page says so
            assert not re.search("[A-Za-z]", "".join(shown)), shown
            driver.execute_script("window.isOld = true")
        with serving(data_dir, port=port):
            page.wait(lambda: not driver.execute_script("return window.isOld"))  # it loads itself anew
            page.wait(lambda: page.user_messages() == ["你好"] and not page.find(".toast-body"))
            page.wait(lambda: page.value("#message textarea") == "今天吃什么")
            page.set_seed(1)
            assert page.send("今天吃什么") == bot.reply(["你好", first, "今天吃什么"], seed=1)
            driver.refresh()
            page.wait(lambda: page.user_messages() == ["你好", "今天吃什么"])
            page.open_sidebar()
            assert page.saved() == ["你好"]
    finally:
        driver.quit()


@pytest.mark.alone
def test_sigterm_ends_the_server_with_a_tab_open(server, tmp_path):
    """The last test of the file: it ends the server."""
    address, process = server
    driver = open_browser(tmp_path, "zh-CN")
    try:
        Page(driver, address)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        assert time.monotonic() - began <= 5
    finally:
        driver.quit()

"""The training view in a real Chromium, with the real commands: from pasted lines to a chat with the result."""

from __future__ import annotations

import json
import shlex

import pytest

from chatbot import Chatbot
from chatbot.checkpoint.folder import save
from tests.conftest import ROOT
from tests.test_browser import Page, open_browser
from tests.test_browser_page import axe_source, resize, serious_violations
from tests.ui.serving import serving
from ui.page.text import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.browser]

PRESET = """\
epochs: 1000000
row_tokens: 128
batch_rows: 2
micro_batch_rows: 2
eval_every: 10
eval_dialogues: 4
save_every: 10
"""
"""So many steps that the run does not end by itself before it is stopped."""

WAIT = 600
"""Seconds that a command may take: they have a low priority, and the machine may be busy."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    (folder / "tiny.yaml").write_text(PRESET)
    return folder


@pytest.fixture
def page(folder, model, tokenizer, tmp_path):
    tiny = tmp_path / "tiny"  # so that the test takes as long as the commands need to start, and no longer
    save(
        tiny, model, tokenizer, {"floor_start_tokens": 12, "floor_delta_tokens": 4, "min_reply_tokens": 6}, {"step": 0}
    )
    options = ("--data-dir", str(tmp_path), "--studio", str(folder), "--checkpoint", str(tiny))
    with serving(tmp_path, *options) as (address, process):
        driver = open_browser(tmp_path, "zh-CN")
        driver.set_script_timeout(120)
        try:
            page = Page(driver, address)
            page.process = process
            page.wait(lambda: page.find("#preset input"))
            yield page
        finally:
            driver.quit()


def say(name: str, **values: object) -> str:
    return TEXT["zh"][f"studio_{name}"].format(**values)


def serious(page, theme: str) -> list:
    """What axe finds on the view as it is now."""
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    return serious_violations(page.driver, axe_source())


def steps(page) -> int:
    """Steps of the run so far, as the curve of the loss ends."""
    ends = page.texts("#studio .x-steps span:last-child")
    return int(ends[0]) if ends else 0


def test_from_pasted_lines_to_a_chat_with_the_result(page, folder):
    lines = (ROOT / "examples" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    dialogues = ["\n".join(json.loads(line)) for line in lines]
    page.press_at("#studio-button")
    page.wait(lambda: page.in_view("#studio-text"))
    assert page.find("#studio-text")[0].get_attribute("placeholder") == say("paste_example")
    for theme in ("light", "dark"):
        assert serious(page, theme) == []
    page.press_at("#studio-prepare")
    page.wait(lambda: page.texts("#x-notice") == [say("nothing")] and page.find("#studio-prepare")[0].is_enabled())
    page.fill("#studio-text", "\n\n".join([*dialogues, "只有一句", "哈哈哈哈哈哈哈哈\n好吧……"]))
    page.press_at("#studio-prepare")
    page.wait(lambda: page.find("#studio-start"), WAIT)
    counts = dict(zip(page.texts("#studio .x-pairs dt"), page.texts("#studio .x-pairs dd"), strict=True))
    assert counts[say("read")] == str(len(lines) + 2)
    assert counts[say("dropped")] == "1"
    assert any("单独的一句" in row for row in page.texts("#studio tbody tr"))
    assert len(page.texts("#studio .x-sample")) == 5
    assert not page.in_view("#studio-text")

    page.press(page.find("#studio-preset-tiny\\.yaml")[0])
    page.press_at("#studio-estimate")
    page.wait(lambda: len(page.texts("#studio .x-estimate dt")) >= 4, WAIT)  # one more when the machine is busy
    assert "个参数" in page.texts("#studio .x-estimate dd")[0]

    page.press_at("#studio-start")
    page.wait(lambda: steps(page) >= 3, WAIT)
    for theme in ("dark", "light"):
        assert serious(page, theme) == []
    assert page.faults() == []
    page.driver.refresh()  # the run goes on, and the view finds it
    page.wait(lambda: page.in_view("#studio-stop"), WAIT)
    page.faults()  # requests that the reload has cut off
    before = page.wait(lambda: steps(page))
    page.wait(lambda: steps(page) > before, WAIT)
    page.press_at("#studio-stop")
    page.wait(lambda: page.find("#studio-resume"), WAIT)
    assert say("stopped") in page.texts("#studio [role=status]")
    stopped = steps(page)
    page.press_at("#studio-resume")
    page.wait(lambda: steps(page) > stopped, WAIT)
    page.press_at("#studio-stop")
    page.wait(lambda: page.find("#studio-chat"), WAIT)
    figure = page.texts("#studio .x-figure")[0]
    record = json.loads((folder / "work" / "bot-1" / "training.json").read_text())
    assert page.texts("#studio .x-verdict") == [say("gain" if record["best"] < record["before"] else "no_gain")]
    assert f"{record['before']:.3f}" in figure
    assert f"{record['best']:.3f}" in figure
    assert page.texts("#studio section:last-child dt") == [say("you"), say("was"), say("is")]
    code = "return [...document.querySelectorAll('#studio code')].map(e => e.textContent)"
    prepare, estimate, train = page.driver.execute_script(code)
    assert shlex.split(prepare)[0] == "xianliao-prepare"
    assert shlex.split(estimate)[-1] == "--dry-run"
    assert shlex.split(train)[0] == "xianliao-train"
    for theme in ("light", "dark"):
        assert serious(page, theme) == []
    resize(page.driver, 360, 740, mobile=True)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    resize(page.driver, 1000, 800)

    page.press_at("#studio-chat")
    page.wait(lambda: page.find(".x-example") and page.in_view("#message"), WAIT)
    page.set_seed(1)
    page.write("今天好累")
    page.find("#message textarea")[0].send_keys("\ue007")
    last = "return xianliao.chat.current().messages.at(-1)"
    reply = page.wait(lambda: "seed" in (page.driver.execute_script(last) or {}) and page.driver.execute_script(last))
    assert (reply["model"], reply["seed"]) == ("bot-1", 1)
    assert reply["text"] == Chatbot.from_pretrained(folder / "work" / "bot-1").reply(["今天好累"], seed=1)
    page.driver.refresh()  # the result is still among the models, and still chosen
    chosen = "return document.querySelector('#checkpoint input')?.value"
    page.wait(lambda: page.driver.execute_script(chosen) == "bot-1")
    assert page.faults() == []

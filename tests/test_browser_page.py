"""Versions, lists, files, keyboard, settings and looks of the page in a real Chromium, and how accessible it is."""

from __future__ import annotations

import json
import re
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from chatbot import Chatbot
from tests.records import read_records
from tests.test_browser import new_page, one_browser  # noqa: F401  # fixture
from tests.ui.serving import serving
from ui.page.text import EXAMPLES, PERSONAS, STYLE_EXAMPLES, TEXT

pytestmark = [pytest.mark.slow, pytest.mark.browser]

CONTROL, SHIFT, UP, ESCAPE, ENTER, NULL = "\ue009", "\ue008", "\ue013", "\ue00c", "\ue007", "\ue000"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with serving(folder, "--data-dir", str(folder)) as (address, _):
        yield address


@pytest.fixture
def page(server, driver):
    resize(driver, 1280, 800)
    page = new_page(driver, server)
    page.wait(lambda: page.find(".x-example") and page.find("#preset input"))  # the first events have ended
    yield page
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert page.faults() == []


def resize(driver, width: int, height: int, mobile: bool = False) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def say(page, name: str) -> str:
    return TEXT["zh"][name]


def versions(page) -> list[str]:
    return page.texts("#chat .x-versions")


def test_a_window_that_is_made_narrow_shows_the_chat(page):
    page.wait(lambda: page.in_view("#new"))
    resize(page.driver, 390, 800)
    page.wait(lambda: not page.in_view("#new") and page.in_view("#message textarea"))
    resize(page.driver, 1280, 800)
    page.wait(lambda: page.in_view("#new"))


def test_the_welcome_offers_four_things_and_a_click_says_one(page):
    assert len(page.find(".x-example")) == 4
    page.press(page.find(".x-example")[3])
    page.wait(lambda: page.user_messages() == [EXAMPLES[3]] and page.idle() and page.bot_messages())
    assert not page.find(".x-example")


def test_actions_on_replies_are_shown_once_there_is_a_reply(page):
    page.wait(lambda: page.find(".x-example") and not page.in_view("#more"))
    page.send("你好")
    assert page.in_view("#more")
    assert page.in_view("#divide")


def test_nothing_is_drawn_over_the_head_of_the_settings(page):
    resize(page.driver, 360, 740, mobile=True)
    page.unfold()
    code = """
    document.querySelectorAll("#panel *").forEach(element => { element.style.pointerEvents = "auto"; });
    const panel = document.querySelector("#panel"), over = [];
    for (let top = 0; top < panel.scrollHeight; top += 9) {
      panel.scrollTop = top;
      const topmost = document.elementFromPoint(panel.getBoundingClientRect().left + 60, 45);
      if (!topmost.closest("#settings")) over.push(topmost.outerHTML.slice(0, 80));
    }
    return over
    """
    assert page.driver.execute_script(code) == []


def test_the_labels_of_sliders_are_in_the_language_of_the_page(page):
    page.unfold()
    code = "return [...document.querySelectorAll('#panel [aria-label]')].map(element => element.ariaLabel)"
    labels = page.wait(lambda: {TEXT["zh"]["temperature"], TEXT["zh"]["spread"]} < set(page.driver.execute_script(code))
                       and page.driver.execute_script(code))  # fmt: skip
    assert [label for label in labels if re.search("[A-Za-z]{3,}", label.replace("top-p", ""))] == []


def test_versions_are_kept_and_can_be_looked_through(page):
    first = page.send("周末去哪玩")
    page.press_at("#more")
    page.wait(lambda: versions(page) == ["2/4"])
    page.click(say(page, "previous"))
    page.wait(lambda: versions(page) == ["1/4"] and page.bot_messages() == [first])
    page.send("好的")
    assert len(page.bot_messages()) == 2
    page.click(say(page, "next"), last=False)  # the other version has no continuation
    page.wait(lambda: versions(page) == ["2/4"] and len(page.user_messages()) == 1)
    page.click(say(page, "previous"))  # the first one has its own
    page.wait(lambda: page.user_messages() == ["周末去哪玩", "好的"])
    page.reload()
    page.wait(lambda: versions(page) == ["1/4"] and page.user_messages() == ["周末去哪玩", "好的"])
    page.click(say(page, "edit"), last=False)
    page.fill("#chat .edit-textarea", "在干嘛")
    page.click(say(page, "send"), last=False)
    page.wait(lambda: page.user_messages() == ["在干嘛"] and page.bot_messages() and page.idle())
    page.wait(lambda: versions(page) == ["2/2"])


def test_a_branch_is_a_chat_of_its_own(page):
    page.send("你好")
    page.send("今天吃什么")
    replies = page.bot_messages()
    page.click(say(page, "branch"), last=False)  # of the first message: it goes to the message box
    page.wait(lambda: page.value("#message textarea") == "你好" and not page.user_messages())
    page.press(page.find("#saved .x-open")[0])
    page.wait(lambda: page.bot_messages() == replies)
    page.press(page.find("#chat .x-turn.bot button[aria-label='从这里另开一段对话']")[0])
    page.wait(lambda: page.bot_messages() == replies[:1])
    assert page.saved() == ["你好（分支）", "你好"]


def test_any_reply_shows_how_it_was_chosen(page):
    reply = page.send("今天天气真好")
    page.send("你好")
    page.press(page.find("#chat .x-turn.bot button[aria-label='详情']")[0])
    page.wait(lambda: "种子" in "".join(page.texts(".x-inside")))
    page.click(say(page, "look_inside"))
    page.wait(lambda: page.find(".x-token"))
    shares = page.driver.execute_script(
        "return [...document.querySelectorAll('.x-token')].map(e => Number(e.style.getPropertyValue('--p')))"
    )
    chosen = [bar.get_attribute("aria-pressed") for bar in page.find(".x-token")]
    assert chosen.index("true") == shares.index(min(shares))  # the least certain one is explained at once
    assert chosen.count("true") == len(page.find(".x-candidates")) == 1
    tokens = page.texts(".x-token > span[lang]")
    assert "".join(tokens) == reply + say(page, "end_mark")
    page.press(page.find(".x-token")[0])
    page.wait(lambda: page.texts(".x-candidates li.chosen .x-name") == tokens[:1])


def test_opening_the_settings_does_not_fix_the_seed(page):
    page.unfold()
    assert page.value("#seed input, #seed textarea") == ""
    seeds = set()
    for text in ("你好", "今天好累"):
        page.send(text)
        seeds.add(re.search(r"种子 (\d+)", page.status()).group(1))
    assert len(seeds) == 2
    assert "0" not in seeds


def test_settings_are_kept_over_a_reload_and_can_be_reset(page):
    page.press_at("#settings-button")
    page.press(page.wait(lambda: page.find("#preset input"))[0])
    page.wait(lambda: page.driver.execute_script("return localStorage['xianliao.settings']"))
    page.reload()
    page.wait(lambda: page.find("#preset input"))
    page.wait(lambda: page.find("#preset input")[0].is_selected())
    page.unfold()
    assert page.value("#temperature input[type=number]") == "0.4"
    page.press_at("#reset")
    page.wait(lambda: page.find("#preset input")[1].is_selected())
    assert page.driver.execute_script("return localStorage['xianliao.settings']") is None


def test_the_examples_of_the_styles_are_replies_of_the_bundled_bot():
    bot = Chatbot.from_pretrained()
    from ui.page.handlers import preset

    for name, (message, seed, reply) in STYLE_EXAMPLES.items():
        temperature, top_p = preset(name, bot.settings)
        assert bot.reply([message], seed=seed, temperature=temperature, top_p=top_p) == reply


def test_chats_are_searched_and_all_of_them_go_to_files_and_back(page):
    page.send("我养了一只猫")
    page.press_at("#new")
    page.wait(lambda: not page.user_messages())
    page.send("今天吃面")
    page.press_at("#more")
    page.wait(lambda: versions(page) == ["2/4"])
    replies = page.bot_messages()
    assert page.texts("#saved h2") == [say(page, "today")]
    page.fill("#search", "一只")
    page.wait(lambda: page.saved() == ["我养了一只猫"])
    page.fill("#search", "")
    downloads = Path(page.driver.folder) / "downloads"
    page.all_chats("export_all")
    (everything,) = page.wait(lambda: list(downloads.glob("xianliao-*.json")))
    page.all_chats("export_training")
    (training,) = page.wait(lambda: list(downloads.glob("xianliao-*.jsonl")))
    assert "signature" not in everything.read_text()
    dialogues = [turns for _, turns, _ in read_records(training)]
    assert ["今天吃面", replies[0]] in dialogues
    assert len(dialogues) == 2
    page.driver.execute_script("window.confirm = () => true")
    page.all_chats("delete_all")
    page.wait(lambda: not page.saved())
    page.choose_file(everything)
    page.wait(lambda: page.saved() == ["今天吃面", "我养了一只猫"])
    page.press(page.find("#saved .x-open")[0])
    page.wait(lambda: page.bot_messages() == replies and versions(page) == ["2/4"])


def test_hostile_files_change_nothing_and_become_no_markup(page, tmp_path):
    bad = {"chats": [{"messages": [{"role": "user", "text": 1}]}, {"messages": "x"}, None, {"messages": []}]}
    markup = "<img src=x onerror=\"document.title='pwned'\">"
    good = {
        "title": markup,
        "messages": [{"role": "user", "text": markup}],
        "tree": {"nodes": [{"parent": 9}], "next": 1},
    }
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    (tmp_path / "good.json").write_text(json.dumps({"chats": [good]}))
    page.choose_file(tmp_path / "bad.json")
    page.wait(lambda: say(page, "not_a_file") in page.texts("body")[0])
    assert page.saved() == []
    page.choose_file(tmp_path / "good.json")
    page.wait(lambda: page.saved() == [markup])
    page.press(page.find("#saved .x-open")[0])
    page.wait(lambda: page.user_messages() == [markup])
    assert "pwned" not in page.driver.title


def test_only_the_newest_message_can_be_taken_back(page):
    page.send("你好")
    page.send("在吗")
    (button,) = page.find(f"#chat button[aria-label='{say(page, 'undo')}']")
    page.press(button)
    page.wait(lambda: page.user_messages() == ["你好"] and page.value("#message textarea") == "在吗")
    assert len(page.find(f"#chat button[aria-label='{say(page, 'undo')}']")) == 1


def test_keys(page):
    from selenium.webdriver.common.action_chains import ActionChains

    page.send("你好")
    box = page.find("#message textarea")[0]
    box.send_keys(UP)
    page.wait(lambda: page.value("#chat .edit-textarea") == "你好")
    page.find("#chat .edit-textarea")[0].send_keys(ESCAPE)
    page.wait(lambda: not page.find("#chat .edit-textarea"))
    ActionChains(page.driver).key_down(CONTROL).send_keys("k").key_up(CONTROL).perform()
    page.wait(lambda: page.driver.execute_script("return document.activeElement.id") == "search")
    ActionChains(page.driver).key_down(CONTROL).key_down(SHIFT).send_keys("o").key_up(SHIFT).key_up(CONTROL).perform()
    page.wait(lambda: page.find(".x-example") and not page.user_messages())
    page.press_at("#settings-button")
    ActionChains(page.driver).send_keys(ESCAPE).perform()
    page.wait(lambda: not page.in_view("#panel"))


def test_every_stop_of_the_tab_key_is_in_view(page):
    page.press_at(".x-side-top button[aria-label]")  # a closed list has no stops
    page.driver.execute_script("document.activeElement.blur()")
    stops = 0
    for _ in range(25):
        page.driver.switch_to.active_element.send_keys("\ue004")
        focus = page.driver.execute_script(
            "const e = document.activeElement, r = e.getBoundingClientRect(); return [e.tagName, r.left >= 0 && r.right"
            " <= innerWidth + 1 && r.width > 0 && r.bottom > 0, e.matches(':focus-visible')]"
        )
        if focus[0] == "BODY":  # between the last stop and the first one
            continue
        assert focus[1:] == [True, True], focus
        stops += 1
    assert stops >= 8


def test_the_language_can_be_chosen(page):
    page.press_at("#language")
    page.wait(lambda: TEXT["en"]["welcome"] in "".join(page.texts("#chat")))
    assert page.driver.execute_script("return document.documentElement.lang") == "en"
    page.send("你好")
    page.wait(lambda: page.texts("#more") == [TEXT["en"]["more"]])  # a word that Gradio translates
    assert "tokens/s" in page.status()  # a line of the server
    page.press_at("#settings-button")
    shown = page.texts("#side button, #side p, #top, #tools :is(p, button), #panel :is(span, p, button, label, h2)")
    chinese = "[\u4e00-\u9fff]+"
    allowed = {
        "你好",
        "中文",
        "闲",
        "喵",
        "在下",
        "姑娘",
        "主人",
        "呀",
        "嘛",
        *re.findall(chinese, str(STYLE_EXAMPLES)),
    }
    assert set(re.findall(chinese, "\n".join(shown))) <= allowed


def test_the_theme_can_be_chosen(page):
    code = "return [document.body.classList.contains('dark'), getComputedStyle(document.documentElement).colorScheme]"
    for name, expected in (("dark", [True, "dark"]), ("light", [False, "light"])):
        page.driver.execute_script(
            "const e = document.querySelector('#theme'); e.value = arguments[0]; e.dispatchEvent(new Event('change'))",
            name,
        )
        page.wait(lambda expected=expected: page.driver.execute_script(code) == expected)
    page.reload()
    page.wait(lambda: page.find("#message textarea"))
    assert page.driver.execute_script(code) == [False, "light"]


def test_the_composer_is_at_the_bottom_and_lines_are_short(page):
    resize(page.driver, 1920, 1080)
    page.send("给我讲一个故事吧" * 12)
    code = "const r = document.querySelector(arguments[0]).getBoundingClientRect(); return [r.left, r.right, r.bottom]"
    left, right, _ = page.driver.execute_script(code, ".x-chat")
    assert right - left <= 760
    assert page.driver.execute_script(code, "#message")[2] > 1080 - 120
    assert page.driver.execute_script("return document.documentElement.scrollHeight <= innerHeight")


def test_a_phone_of_360_pixels_shows_everything_without_overlap(page):
    resize(page.driver, 360, 740, mobile=True)
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        page.reload()
        page.wait(lambda: page.find(".x-example"))
        page.send("最近工作好累啊，老板天天让我加班")
        page.send("你好")
        sizes = page.driver.execute_script(
            "return [...document.querySelectorAll('button')].filter(e => e.offsetParent)"
            ".map(e => [e.className, e.offsetHeight])"
        )
        assert not [size for size in sizes if size[1] < 43], sizes
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
        boxes = page.driver.execute_script(
            "return ['#top', '#chat', '#message', '#tools'].map(s => document.querySelector(s).getBoundingClientRect())"
            ".map(r => [Math.round(r.top), Math.round(r.bottom)])"
        )
        assert all(above[1] <= below[0] + 1 for above, below in pairwise(boxes)), boxes
        shown = "#chat .x-turn.last .x-actions > .x-button"
        names = [say(page, name) for name in ("copy", "retry", "another", "like", "dislike")]
        assert [name for name, _ in icons(page, shown)] == names
        row = [top for _, top in icons(page, f"{shown}, #chat .x-turn.last .x-fold > button")]
        assert len(row) == 6
        assert len(set(row)) == 1
        page.press_at("#chat .x-turn.last .x-fold > button")
        assert page.texts("#chat .x-menu button") == [say(page, "branch"), say(page, "info")]
        page.press_at("#chat .x-menu [data-name=info]")
        page.wait(lambda: page.find("#chat .x-turn.last .x-inside") and not page.find(".x-menu"))
        assert (
            page.driver.execute_script("return document.querySelector('#message').getBoundingClientRect().bottom") < 740
        )
        asked, answered, next_asked = (box(page, f"#chat .x-turn:nth-child({at}) .message") for at in (1, 2, 3))
        assert 4 <= answered["top"] - asked["bottom"] <= 12
        assert 18 <= next_asked["top"] - answered["bottom"] <= 26
        page.press_at("#more")
        page.wait(lambda: versions(page) == ["2/4"])
        tops = {top for _, top in icons(page, "#chat .x-turn.last .x-versions > .x-button")}
        assert len(tops) == 1
        assert min(tops) > row[0]  # below, so that no button moves
        heading = box(page, "#heading")
        assert heading["width"] >= 6 * 16  # of six characters of a title
        page.press_at("#settings-button")
        assert_the_head_of_the_settings_stays(page)
        assert cut_off_fields(page) == []
        page.press_at("#panel .x-button")
        page.press_at("#side-button")
        page.wait(lambda: page.in_view("#new"))
        assert page.in_view("#language")
        assert box(page, ".x-side-end")["height"] < 740 / 6
        page.press(page.find("#saved .x-open")[0])
        page.wait(lambda: not page.in_view("#new"))  # the chosen conversation is not hidden behind the list
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def box(page, selector: str) -> dict[str, float]:
    """Edges of the first element of a selector."""
    return page.driver.execute_script(
        "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector
    )


def cut_off_fields(page) -> list[list[float]]:
    """Heights of the number fields and buttons of the settings that their surroundings cut off, with the height shown."""
    return page.driver.execute_script(
        "return [...document.querySelectorAll('#panel input[type=number], #panel .reset-button')]"
        ".map(e => [e.offsetHeight, e.parentElement.clientHeight]).filter(([own, shown]) => !own || own > shown)"
    )


def assert_the_head_of_the_settings_stays(page) -> None:
    page.unfold()
    page.driver.execute_script("document.querySelector('#panel').scrollTop = 1e6")
    assert page.driver.execute_script("return document.querySelector('#panel').scrollTop") > 100
    assert page.in_view("#settings h2")
    x, y = (box(page, "#settings .x-button")[name] for name in ("x", "y"))
    code = "return Boolean(document.elementFromPoint(arguments[0] + 9, arguments[1] + 9).closest('#settings'))"
    assert page.driver.execute_script(code, x, y)
    assert box(page, "#settings")["top"] == 0
    background = "return getComputedStyle(document.querySelector('#settings')).backgroundColor"
    assert page.driver.execute_script(background).startswith("rgb(")  # nothing shines through


def luminance(color: str) -> float:
    """Relative luminance of a colour of a computed style, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_fields_of_the_settings_have_a_visible_border(page, theme):
    page.driver.execute_script("xianliao.setTheme(arguments[0])", theme)
    resize(page.driver, 1280, 600)
    assert_the_head_of_the_settings_stays(page)
    style = "const s = getComputedStyle(document.querySelector(arguments[0])); return s[arguments[1]]"
    panel = page.driver.execute_script(style, "#panel", "backgroundColor")
    for field in ("#seed :is(input, textarea)", "#persona textarea", "#temperature .tab-like-container", "#search"):
        page.driver.execute_script("document.activeElement.blur()")
        assert page.driver.execute_script(style, field, "borderTopWidth") == "1px", field
        # Gradio fades borders; the value of the variable is there at once.
        border = page.wait(lambda field=field: page.driver.execute_script(style, field, "borderTopColor"))
        assert contrast(border, panel) >= 3, (field, border, panel)
    code = "const e = document.querySelector('#temperature input[type=range]');"
    code += " e.style.color = 'var(--neutral-200)'; return getComputedStyle(e).color"
    track, accent = page.driver.execute_script(code), "rgb(94, 234, 212)" if theme == "dark" else "rgb(15, 118, 110)"
    assert contrast(track, accent) >= 3


def test_the_welcome_names_the_persona_and_leads_back(page):
    page.press(page.find("#personas .x-persona")[0])
    name = say(page, "persona_cat").splitlines()[0]
    page.wait(lambda: page.texts(".x-welcome h2") == [say(page, "persona_welcome").format(name=name)])
    assert page.texts("#heading") == [name]
    page.press_at("#no-persona")
    page.wait(lambda: page.texts(".x-welcome h2") == [say(page, "welcome")])
    assert page.texts("#heading") == [say(page, "name")]


def test_all_chats_are_deleted_only_after_a_question(page):
    page.send("你好")
    page.driver.execute_script("window.asked = []; window.confirm = (text) => { asked.push(text); return false }")
    page.press_at("#all-chats")
    names = [item.get_attribute("data-name") for item in page.wait(lambda: page.find("#side .x-menu button"))]
    assert names.index("delete_all") - names.index("export_all") > 1  # not beside
    assert page.in_view("#side .x-menu")
    page.press_at("#side .x-menu [data-name=delete_all]")
    assert page.driver.execute_script("return window.asked") == [say(page, "ask_delete_all")]
    assert page.saved() == ["你好"]


def icons(page, selector: str) -> list[tuple[str, int]]:
    """Names and top edges of the visible buttons of a selector."""
    code = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent)"
    return page.driver.execute_script(
        f"{code}.map(e => [e.ariaLabel, Math.round(e.getBoundingClientRect().top)])", selector
    )


def test_a_persona_is_a_card_with_a_face_and_is_kept_with_the_chat(page):
    bot = Chatbot.from_pretrained()
    page.set_seed(2)
    cards = page.find("#personas .x-persona")
    assert [card.get_attribute("data-name") for card in cards] == list(PERSONAS)
    assert min(card.size["height"] for card in cards) >= 44
    page.press(cards[0])
    page.wait(lambda: page.find("#top .x-face.cat svg") and page.find("#chat .x-face.cat"))
    assert page.value("#persona textarea") == "\n".join(PERSONAS["cat"])
    assert page.send("你好") == bot.reply([*PERSONAS["cat"], "你好"], seed=2)
    page.reload()
    page.wait(lambda: page.find("#top .x-face.cat") and page.find(".x-persona[aria-pressed=true]"))
    page.press(page.find(".x-persona[aria-pressed=true]")[0])
    page.wait(lambda: not page.find(".x-persona[aria-pressed=true], #top .x-face.cat, #chat .x-face.cat"))


def axe_source() -> str:
    """The script of axe-core, which some Python packages bring along."""
    for package in ("axe_playwright_python", "axe_core_python"):
        spec = find_spec(package)
        path = Path(spec.origin).with_name("axe.min.js") if spec and spec.origin else None
        if path is not None and path.is_file():
            return path.read_text(encoding="utf-8")
    pytest.skip("axe-core is not installed: pip install axe-core-python")


def serious_violations(driver, source: str) -> list:
    """Return what axe-core finds on the shown page that is serious or critical."""
    driver.set_script_timeout(120)
    driver.execute_script(source)
    violations = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations.map(v => [v.id, v.impact,"
        " v.nodes.map(n => n.target.join(' ') + ' ' + (n.any[0] ? n.any[0].message : '')).slice(0, 5)])))"
    )
    return [violation for violation in violations if violation[1] in ("serious", "critical")]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, theme):
    source = axe_source()
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def check(view: str) -> None:
        time.sleep(0.5)
        serious = serious_violations(page.driver, source)
        assert not serious, (view, json.dumps(serious, ensure_ascii=False, indent=1))

    check("welcome")
    page.send("今天天气真好")
    page.press_at("#more")
    page.wait(lambda: versions(page) == ["2/4"])
    page.click(say(page, "info"))
    page.click(say(page, "look_inside"))
    page.press(page.wait(lambda: page.find(".x-token"))[0])
    page.click(say(page, "like"))
    page.wait(lambda: page.in_view("#reasons"))
    check("conversation, decoding view, rating")
    page.press(page.find("#saved .x-more > button")[0])
    page.unfold()
    check("menu and settings")

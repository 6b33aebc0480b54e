"""The picture of replies of a checkpoint with a Gaussian latent, in a real Chromium."""

from __future__ import annotations

import json
import time

import pytest
import torch

from chatbot import Chatbot
from chatbot.evaluation.latent.picture import overlap, pulls, whitened_replies
from chatbot.model.latent.gaussian import Normal
from tests.test_browser import one_browser  # noqa: F401  # fixture
from tests.test_browser_page import axe_source, page, resize, say, serious_violations, versions  # noqa: F401  # fixtures
from tests.ui.serving import latent_checkpoint, serving
from ui.page.text import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.browser]

MESSAGE, UNIT, EDGE = "周末去哪玩", 64, 3
DOT = ".x-ball .x-dot"


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    return latent_checkpoint(tmp_path_factory.mktemp("varied"))


@pytest.fixture(scope="module")
def bot(varied):
    return Chatbot.from_pretrained(varied)


@pytest.fixture(scope="module")
def server(varied, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with serving(folder, "--data-dir", str(folder), "--checkpoint", str(varied)) as (address, _):
        yield address


def opened(page, variants: int = 0) -> list[str]:  # noqa: F811
    """The replies of a conversation whose picture is open."""
    page.set_seed(2)
    page.send(MESSAGE)
    for number in range(variants):
        page.click(say(page, "another"))
        page.wait(lambda number=number: versions(page) == [f"{number + 2}/{number + 2}"])
    page.click(say(page, "ball"))
    texts = page.driver.execute_script("return xianliao.tree.texts(1)")
    page.wait(lambda: len(page.find(".x-ball > svg .x-ellipse")) == len(set(texts)))
    return texts


def numbers(page, selector: str, *names: str) -> list[list[float]]:  # noqa: F811
    code = (
        "return [...document.querySelectorAll(arguments[0])].map(e => arguments[1].map(n => Number(e.getAttribute(n))))"
    )
    return page.driver.execute_script(code, selector, names)


def decoded(page) -> dict:  # noqa: F811
    """The message at the point, once it has been decoded."""
    page.wait(lambda: page.find(".x-ball-reply:not(:empty)") and not page.texts(".x-ball-reply")[0].endswith("…"))
    return page.texts(".x-ball-reply")[0]


def drag(page, x: float, y: float) -> None:  # noqa: F811
    """Drags the dot by this many standard deviations, with the pointer."""
    from selenium.webdriver.common.action_chains import ActionChains

    (dot,) = page.find(DOT)
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
    width = page.driver.execute_script("return document.querySelector('.x-ball > svg').getBoundingClientRect().width")
    scale = width / 392 * UNIT
    chain = ActionChains(page.driver).move_to_element(dot).click_and_hold()
    chain.move_by_offset(round(x * scale / 2), round(-y * scale / 2)).move_by_offset(
        round(x * scale) - round(x * scale / 2), round(-y * scale) - round(-y * scale / 2)
    ).release().perform()


def test_each_reply_is_an_ellipse_and_dragging_the_point_gives_the_reply_there(page, bot):  # noqa: F811
    texts = opened(page, variants=2)
    q = whitened_replies(bot, [MESSAGE], texts)
    centre, volume = pulls(q)
    axes = (centre + volume).mean(0).topk(2).indices.tolist()
    expected = [
        [UNIT * min(EDGE, max(-EDGE, q.mean[row, axes[0]].item())), UNIT * q.deviation[row, axes[0]].item()]
        for row in range(3)
    ]
    drawn = numbers(page, ".x-ball > svg .x-ellipse ellipse", "cx", "rx")
    assert sorted(map(tuple, drawn)) == [pytest.approx(pair, abs=0.2) for pair in sorted(map(tuple, expected))]
    lines = page.texts(".x-ball li small")
    for row in range(3):
        pull = TEXT["zh"]["ball_pull"].format(centre=f"{centre[row].sum():.1f}", volume=f"{volume[row].sum():.1f}")
        assert pull in lines
    shared = [pair for pair in ((0, 1), (0, 2), (1, 2)) if overlap(q, *pair) > 0.3]
    assert len(page.find(".x-ball .x-edge")) == len(shared)
    drag(page, 1.5, 1)
    shown = decoded(page)
    message = page.driver.execute_script("return xianliao.ball.reply()")
    assert message["text"] in shown
    assert message["text"] == bot.reply([MESSAGE], 2, point=message["point"])
    x, y = (message["point"][axis] for axis in axes)
    assert (x, y) == (pytest.approx(1.5, abs=0.1), pytest.approx(1, abs=0.1))
    assert page.bot_messages() == texts[-1:]  # the conversation has not changed


def test_the_arrow_keys_move_the_point_and_the_reply_there_can_be_used(page, bot):  # noqa: F811
    (first,) = opened(page)
    (dot,) = page.find(DOT)
    assert dot.get_attribute("aria-label") == say(page, "ball_dot")
    for _ in range(5):
        dot.send_keys("\ue008\ue014")  # Shift and the right arrow: half a standard deviation
    page.wait(lambda: page.find(DOT)[0].get_attribute("aria-valuenow") == "2.5")
    decoded(page)
    message = page.driver.execute_script("return xianliao.ball.reply()")
    assert message["text"] == bot.reply([MESSAGE], 2, point=message["point"])
    assert message["text"] != first
    assert message["text"] in dot.get_attribute("aria-valuetext")
    page.click(say(page, "ball_use"))
    page.wait(lambda: versions(page) == ["2/2"] and page.bot_messages() == [message["text"]])
    page.wait(lambda: len(page.find(".x-ball > svg .x-ellipse")) == 2)  # it has become an ellipse
    page.click(say(page, "info"))
    page.click(say(page, "look_inside"))
    page.wait(lambda: page.find(".x-token"))
    assert "".join(page.texts(".x-token > span[lang]")[:-1]) == message["text"]
    page.reload()
    page.wait(lambda: versions(page) == ["2/2"] and page.bot_messages() == [message["text"]])
    page.click(say(page, "another"))
    page.wait(lambda: versions(page) == ["3/3"])


def test_the_picture_fits_a_phone_and_a_tap_moves_the_point(page):  # noqa: F811
    resize(page.driver, 360, 740, mobile=True)
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        page.send(MESSAGE)
        page.click(say(page, "ball"))
        page.wait(lambda: page.find(DOT))
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
        code = "const b = document.querySelector('.x-ball');"
        code += " return [b.scrollWidth - b.clientWidth, b.getBoundingClientRect().right]"
        over, right = page.driver.execute_script(code)
        assert over <= 0
        assert right <= 360
        touch = box_of(page, f"{DOT} .x-touch")
        assert min(touch["width"], touch["height"]) >= 36
        svg = page.find(".x-ball > svg")[0]
        page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
        area = box_of(page, ".x-ball > svg")
        point = {"x": area["left"] + area["width"] * 0.7, "y": area["top"] + area["height"] * 0.4}
        for kind, points in (("touchStart", [point]), ("touchEnd", [])):
            page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        decoded(page)
        x = float(page.find(DOT)[0].get_attribute("aria-valuenow"))
        assert x == pytest.approx(1.2, abs=0.2)
        dot = box_of(page, f"{DOT} circle:last-child")
        start = {"x": dot["left"] + dot["width"] / 2, "y": dot["top"] + dot["height"] / 2}
        steps = [("touchStart", [start])]
        steps += [("touchMove", [{"x": start["x"] - 12 * n, "y": start["y"]}]) for n in range(1, 6)]
        for kind, points in (*steps, ("touchEnd", [])):
            page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            time.sleep(0.05)
        page.wait(lambda: float(page.find(DOT)[0].get_attribute("aria-valuenow")) < x - 1)
        decoded(page)
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def box_of(page, selector: str) -> dict:  # noqa: F811
    return page.driver.execute_script(
        "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector
    )


def test_another_conversation_closes_the_picture_and_late_results_change_nothing(page):  # noqa: F811
    opened(page)
    drag(page, 1, 1)
    page.press_at("#new")
    page.wait(lambda: page.find(".x-example") and not page.find(".x-ball"))
    time.sleep(1)
    assert not page.find(".x-ball")
    page.send("你好")
    assert not page.find(".x-ball")
    page.click(say(page, "ball"))
    page.wait(lambda: page.find(".x-ball .x-ellipse"))
    assert page.texts(".x-ball-reply") == []
    page.click(say(page, "ball"))
    page.wait(lambda: not page.find(".x-ball"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_picture(page, theme):  # noqa: F811
    source = axe_source()
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened(page, variants=1)
    drag(page, 1, -1)
    decoded(page)
    time.sleep(0.5)
    serious = serious_violations(page.driver, source)
    assert not serious, json.dumps(serious, ensure_ascii=False, indent=1)


def test_the_picture_speaks_english_as_well(page):  # noqa: F811
    page.send(MESSAGE)
    page.driver.execute_script("document.cookie = `${xianliao.given.cookie}=en; path=/`")
    page.reload()
    page.wait(lambda: page.bot_messages())
    page.click(TEXT["en"]["ball"])
    page.wait(lambda: any("distance from the centre" in text for text in page.texts(".x-ball")))
    assert TEXT["en"]["ball_collapsed"] in page.texts(".x-ball")[0]


def test_the_overlap_of_the_page_is_the_bhattacharyya_coefficient(page):  # noqa: F811
    q = Normal(torch.tensor([[0.3, 0.0], [1.5, 0.2]]), torch.tensor([[0.2, 0.1], [-0.7, 0.0]]))
    rows = [{"m": m, "s": s} for m, s in zip(q.mean.tolist(), q.deviation.tolist(), strict=True)]
    assert page.driver.execute_script("return xianliao.ball.overlap(...arguments)", *rows) == pytest.approx(
        overlap(q, 0, 1), abs=1e-5
    )

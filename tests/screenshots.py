"""Screenshots of the page and the report, to be looked at: python -m tests.screenshots DIR

Needs chromium and chromedriver. The views are those that a person sees: first load, a long conversation, many chats,
versions of a reply, how a reply was chosen, settings, the training view and its report on the data, the evaluation's
report, the rating sheet; on a desktop, a wide screen and a phone, light and dark.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chatbot.evaluation.answering import Context
from chatbot.evaluation.aptness.sheets import RANDOM, REFERENCE, Key, make_rows, write_sheets
from tests.conftest import ROOT
from tests.test_browser import Page, open_browser
from tests.test_browser_page import resize
from tests.ui.serving import serving

TURNS = (
    *("今天面试，好紧张", "我怕说错话", "谢谢，我会加油的", "晚上想吃火锅", "一个人吃有点孤单", "给我讲个笑话呗"),
    *("哈哈好冷", "周末有什么好看的电影吗", "最近睡不好", "你是谁呀", "你会一直陪我吗", "那我先去忙了，晚安"),
)
STORE = """
for (let at = 0; at < 15; at++) {
  const id = (at + 1).toString(16).padStart(16, "0"), day = 24 * 3600 * 1000;
  const messages = [{ role: "user", text: `第 ${at + 1} 段对话` }, { role: "assistant", text: "好呀" }];
  const chat = { id, title: ["周末去哪玩", "今天好累", "讲个笑话"][at % 3] + (at + 1), persona: [], messages };
  localStorage[`xianliao.chat.${id}`] = JSON.stringify({ ...chat, updated: Date.now() - at * day * 0.6 });
}
"""
SIZES = {"desktop": (1280, 800), "wide": (1920, 1080), "phone": (360, 740)}
MAX_PAGE_HEIGHT = 12_000
"""Height to which a picture of a whole page is cut."""
FIGURES = {"desktop": (1280, 800, "light"), "dark": (1000, 800, "dark"), "phone": (390, 844, "light")}
"""Width, height and theme of the pictures in docs/figures."""
COMMAND_SECONDS = 600
"""Time that the cleaning may take."""
FIGURE_TURNS = ("你好", *TURNS[:4])
MAP_MESSAGE, MAP_SEED = "周末想出去玩", 1


PARTS = ("page", "training", "report", "sheet")


class Camera:
    """A browser that shows the page of a server in several sizes and themes, and saves pictures."""

    def __init__(self, driver, address: str, folder: Path):
        self.driver, self.address, self.folder = driver, address, folder

    def open(self, size: str = "desktop", theme: str = "light", stored: str = "") -> Page:
        """Open the page with an empty storage, after running the script `stored` in it."""
        self.show(*SIZES[size], theme, size == "phone")
        return self.visit(stored)

    def show(self, width: int, height: int, theme: str, mobile: bool = False) -> None:
        """Set the size of the window and the theme."""
        resize(self.driver, width, height, mobile=mobile)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def visit(self, stored: str = "") -> Page:
        """Open the page with an empty storage, after running the script `stored` in it."""
        self.driver.get(f"{self.address}/robots.txt")
        self.driver.execute_script(f"localStorage.clear(); sessionStorage.clear(); {stored}")
        page = Page(self.driver, self.address)
        page.wait(lambda: page.find(".x-example") and page.find("#preset input"))
        return page

    def press(self, page: Page, selector: str) -> None:
        """Press the first element of a selector as soon as the page has one."""
        page.press(page.wait(lambda: page.find(selector))[0])

    def save(self, name: str, whole: bool = False) -> None:
        """Save what is shown, or the whole page."""
        time.sleep(0.6)
        width, height = self.driver.execute_script(
            "return [document.documentElement.clientWidth, document.documentElement.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, MAX_PAGE_HEIGHT), "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip} if whole else {}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        (self.folder / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))
        print(self.folder / f"{name}.png", flush=True)


def take_page(camera: Camera) -> None:
    """Take the views of the chat page."""
    for size, theme in (("desktop", "light"), ("wide", "light"), ("phone", "light"), ("desktop", "dark")):
        camera.open(size, theme)
        camera.save(f"first-{size}-{theme}")
    page = camera.open("desktop")
    page.set_seed(17)
    page.press_at("#panel .x-button")
    for text in TURNS:
        page.send(text)
    camera.save("turns-desktop-light")
    page.press_at("#more")
    page.wait(lambda: page.texts("#chat .x-versions"))
    camera.save("versions-desktop-light")
    page.press(page.find("#chat .x-turn.bot.last button[aria-label='详情']")[0])
    page.click("看它怎么选字")
    page.wait(lambda: page.find(".x-token"))
    page.press(page.find(".x-token")[1])
    page.driver.execute_script("document.querySelector('#chat').scrollTop = 1e6")
    camera.save("inside-desktop-light")
    stored = page.driver.execute_script("return JSON.stringify(Object.entries(localStorage))")
    again = f"for (const [key, text] of {stored}) if (key.startsWith('xianliao.chat')) localStorage[key] = text;"
    for size, theme in (("phone", "light"), ("phone", "dark"), ("wide", "dark")):
        page = camera.open(size, theme, again)
        page.press_at("#side-button") if size == "phone" else None
        camera.press(page, "#saved .x-open")
        page.wait(page.bot_messages)
        camera.save(f"turns-{size}-{theme}")
    for size in ("desktop", "phone"):
        page = camera.open(size, stored=STORE)
        page.press_at("#side-button") if size == "phone" else None
        page.press(page.find("#saved .x-more > button")[1])
        camera.save(f"chats-{size}-light")
    for size, theme in (("desktop", "light"), ("phone", "light"), ("desktop", "dark")):
        page = camera.open(size, theme)
        page.unfold()
        camera.press(page, ".x-persona")
        camera.save(f"settings-{size}-{theme}")
        page.driver.execute_script("document.querySelector('#panel').scrollTop = 1e6")
        camera.save(f"personas-{size}-{theme}")
    for size, theme in (("desktop", "light"), ("phone", "dark")):
        page = camera.open(size, theme)
        page.press_at("#studio-button")
        camera.save(f"training-{size}-{theme}")


def take_training(camera: Camera) -> None:
    """Clean the example dialogues and two odd ones in the training view, and take the report."""
    lines = (ROOT / "examples" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    dialogues = ["\n".join(json.loads(line)) for line in lines]
    page = camera.open("desktop")
    page.press_at("#studio-button")
    page.fill("#studio-text", "\n\n".join([*dialogues, "只有一句", "哈哈哈哈哈哈哈哈\n好吧……"]))
    page.press_at("#studio-prepare")
    page.wait(lambda: page.find("#studio-start"), COMMAND_SECONDS)
    for size in ("desktop", "phone"):
        camera.show(*SIZES[size], "light", size == "phone")
        camera.save(f"training-report-{size}-light")


def take_sheet(camera: Camera, folder: Path) -> None:
    """Take a rating sheet with the replies of people and random ones."""
    lines = (ROOT / "examples" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line) for line in lines[:6]]
    contexts = [Context(tuple(dialogue[:-1]), dialogue[-1]) for dialogue in turns]
    key = Key(0, [REFERENCE, RANDOM], make_rows("examples", contexts, {}, 0, 0))
    folder.mkdir(parents=True, exist_ok=True)
    (sheet,) = write_sheets(key, folder, 1)
    for size, theme in (("desktop", "light"), ("phone", "light"), ("phone", "dark")):
        camera.show(*SIZES[size], theme, size == "phone")
        camera.driver.get(sheet.as_uri())
        camera.save(f"sheet-{size}-{theme}")


def take_figures(camera: Camera) -> None:
    """Take the pictures of docs/figures: the same messages, with the seed that the page draws."""
    for name, (width, height, theme) in FIGURES.items():
        camera.show(width, height, theme, name == "phone")
        page = camera.visit()
        for text in FIGURE_TURNS:
            page.send(text)
        camera.save(name)


def take_map(camera: Camera) -> None:
    """Take the map of replies, whose point was dragged between two of four versions; only docs/figures has it."""
    camera.show(900, 1400, "light", False)
    page = camera.visit()
    page.set_seed(MAP_SEED)
    page.press_at("#panel .x-button")
    page.send(MAP_MESSAGE)
    for number in range(2, 5):
        page.click("换个说法")
        page.wait(lambda number=number: page.texts("#chat .x-versions") == [f"{number}/{number}"])
    page.click("回复地图")
    page.wait(lambda: page.find(".x-ball .x-dot"))
    for key in ("\ue014", "\ue014", *["\ue013"] * 4):  # with Shift, an arrow is half a standard deviation
        page.find(".x-ball .x-dot")[0].send_keys("\ue008", key)
    page.wait(lambda: page.find(".x-ball-reply:not(:empty)") and not page.texts(".x-ball-reply")[0].endswith("…"))
    page.driver.execute_script("document.activeElement.blur()")
    area = page.driver.execute_script("return document.querySelector('.x-ball').getBoundingClientRect().toJSON()")
    clip = {
        "x": area["x"] - 8,
        "y": area["y"] - 8,
        "width": area["width"] + 16,
        "height": area["height"] + 16,
        "scale": 1,
    }
    options = {"captureBeyondViewport": True, "clip": clip}
    picture = camera.driver.execute_cdp_cmd("Page.captureScreenshot", options)
    (camera.folder / "map.png").write_bytes(base64.b64decode(picture["data"]))


def take_report(camera: Camera, work: Path) -> None:
    """Evaluate the bundled bot on a few dialogues, and take its report."""
    command = [sys.executable, "-m", "chatbot.evaluation", "--data", "examples/dialogues.jsonl", "--contexts", "6"]
    subprocess.run([*command, "--max-dialogues", "12", "--output", str(work)], cwd=ROOT, check=True)
    for size, theme in (("desktop", "light"), ("desktop", "dark"), ("phone", "light")):
        camera.show(*SIZES[size], theme, size == "phone")
        camera.driver.get((work / "report.html").as_uri())
        camera.save(f"report-{size}-{theme}", whole=True)


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path, help="folder for the pictures")
    parser.add_argument("--language", default="zh-CN", help="language of the browser (default: %(default)s)")
    parser.add_argument("--figures", action="store_true", help="take the pictures of docs/figures alone")
    parser.add_argument("--map", metavar="DIR", help="take the map of replies of this checkpoint alone")
    parser.add_argument("--only", choices=PARTS, help="take one part (default: all)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        options = ["--data-dir", str(work), "--studio", str(work / "studio")]
        options += ["--checkpoint", args.map] if args.map else []
        with serving(work, *options) as (address, _):
            driver = open_browser(work, args.language)
            try:
                camera = Camera(driver, address, args.folder.resolve())
                parts = {
                    "page": lambda: take_page(camera),
                    "training": lambda: take_training(camera),
                    "report": lambda: take_report(camera, work / "report"),
                    "sheet": lambda: take_sheet(camera, work / "sheet"),
                }
                wanted = [args.only] if args.only else PARTS
                if args.map:
                    take_map(camera)
                elif args.figures:
                    take_figures(camera)
                else:
                    for part in wanted:
                        parts[part]()
                severe = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
                print(*severe, sep="\n", end="\n" if severe else "")
            finally:
                driver.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())

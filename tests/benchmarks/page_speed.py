"""Waits that a person notices: the page, the first token, a mistake in a command: python -m tests.benchmarks.page_speed

Times are wall-clock, the best of five: other work on the machine only makes them longer. Page and token are timed by the
browser itself. Needs chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.test_browser import Page, open_browser
from tests.test_mistakes import CASES, HOMES
from tests.ui.serving import serving

TIMES = 5
WATCH_PAGE = """
const look = () => document.querySelector("#message textarea") && document.querySelector(".x-example")
  ? (window.usableAfter = performance.now()) : requestAnimationFrame(look);
look();
"""
"""Notes when the message box and the examples of the welcome are drawn, in ms since the navigation began."""
WATCH_REPLY = """
const replies = () => [...document.querySelectorAll("#chat .bot.message")].filter((turn) => turn.innerText.trim()).length;
const before = replies();
window.firstToken = null;
document.addEventListener("keydown", () => { window.sentAt = performance.now(); }, { capture: true, once: true });
new MutationObserver((_, observer) => {
  if (replies() <= before) return;
  window.firstToken = performance.now() - window.sentAt;
  observer.disconnect();
}).observe(document.querySelector("#chat"), { childList: true, subtree: true, characterData: true });
"""
MESSAGES = ("吃了吗", "今天天气真好", "周末去哪玩", "给我讲个笑话呗", "最近睡不好")


def time_page(driver, address: str) -> list[float]:
    """Return the seconds until the page can be used, of several visits."""
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH_PAGE})
    times = []
    for _ in range(TIMES):
        page = Page(driver, address)
        times.append(page.wait(lambda: driver.execute_script("return window.usableAfter")) / 1e3)
    return times


def time_tokens(driver, address: str) -> list[float]:
    """Return the seconds from Enter to the first text of the reply, of several messages."""
    page, times = Page(driver, address), []
    page.send("你好")
    for text in MESSAGES:
        page.write(text)
        driver.execute_script(WATCH_REPLY)
        page.find("#message textarea")[0].send_keys("\ue007")
        times.append(page.wait(lambda: driver.execute_script("return window.firstToken")) / 1e3)
        page.wait(page.idle)
        time.sleep(0.5)
    return times


def time_mistake(command: str) -> list[float]:
    """Return the seconds until a command has answered a mistake and ended, of several calls."""
    module, function = HOMES[command]
    call = f"import sys; from {module} import {function} as main; sys.exit(main(sys.argv[1:]))"
    environment, times = {**os.environ, "PYTHONPATH": str(ROOT)}, []
    for _ in range(TIMES):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", call, *CASES[command][0][0]], env=environment, capture_output=True)
        times.append(time.perf_counter() - started)
    return times


def show(name: str, times: list[float]) -> None:
    """Print the best time and all times."""
    print(f"{name}: {min(times):.2f} s (all: {', '.join(f'{value:.2f}' for value in sorted(times))})", flush=True)


def main() -> int:
    """Run the script."""
    argparse.ArgumentParser(
        prog="python -m tests.benchmarks.page_speed", description=__doc__.split(":")[0]
    ).parse_args()
    for command in CASES:
        show(f"{command} {' '.join(CASES[command][0][0])}", time_mistake(command))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with serving(work, "--data-dir", str(work)) as (address, _):
            driver = open_browser(work, "zh-CN")
            try:
                show("page usable", time_page(driver, address))
                show("first token", time_tokens(driver, address))
            finally:
                driver.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())

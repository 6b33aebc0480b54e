"""The page of `export_formats` in a headless Chromium, from file:// with the network off."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil

from tests.benchmarks.export_formats import LENGTH, LONG, REPLIES, Result
from tests.test_browser import CHROMIUM, DRIVER, open_browser

MEASURE = """const [messages, long, replies, done] = arguments;
(async () => {
  const changes = {greedy: 1, candidates: 1}, firsts = [], rates = [];
  for (const message of messages) {
    const began = performance.now(); let first = null;
    await xianliao.reply([message], 0, changes, () => { first ??= performance.now() - began; });
    firsts.push(first);
  }
  for (const message of messages.slice(0, replies)) {
    const began = performance.now();
    const made = await xianliao.reply(["嗯" + message], 0, {...changes, ...long});
    rates.push([made.tokens.length + 1, performance.now() - began]);
  }
  done([firsts, rates]);
})().catch((error) => done(String(error)));"""
SEND = "document.getElementById('message').value = '你好'; document.getElementById('send').click()"
READY = "return document.getElementById('temperature').placeholder !== ''"
SHOWN = "const b = document.querySelector('.message.bot'); return !!b && b.textContent.trim().length > 0"


def measure_page(page: Path, messages: list[str]) -> Result:
    """Measure a page; `start` is from loading it to the first token of the reply to 你好 that it shows."""
    if CHROMIUM is None or DRIVER is None:
        raise SystemExit("chromium and chromedriver are not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        driver = open_browser(Path(folder), "zh-CN", "--host-resolver-rules=MAP * ~NOTFOUND")
        try:
            driver.set_script_timeout(240)
            starts = []
            for _ in range(3):
                driver.get("about:blank")
                began = time.monotonic()
                driver.get(page.as_uri())
                _wait(driver, READY)
                driver.execute_script(SEND)
                _wait(driver, SHOWN)
                starts.append(time.monotonic() - began)
                driver.execute_script("localStorage.clear()")
            outcome = driver.execute_async_script(MEASURE, messages, LONG, REPLIES)
            if isinstance(outcome, str):
                raise SystemExit(outcome)
            firsts, longs = outcome
            assert all(tokens > LENGTH for tokens, _ in longs), longs
            speed = max(1000 * tokens / milliseconds for tokens, milliseconds in longs)
            memory = _renderer_bytes(driver.service.process.pid) / 1e6
        finally:
            driver.quit()
    return Result(page.stat().st_size / 1e6, min(starts), sorted(firsts)[len(firsts) // 2], speed, memory, None)


def _wait(driver, condition: str, seconds: float = 60) -> None:
    """Wait until a script returns true."""
    deadline = time.monotonic() + seconds
    while not driver.execute_script(condition):
        if time.monotonic() > deadline:
            raise SystemExit(f"The page does nothing for {seconds:.0f} s.")
        time.sleep(0.01)


def _renderer_bytes(driver_pid: int) -> int:
    """Return the resident memory of the largest process that shows a page."""
    sizes = [0]
    for process in psutil.Process(driver_pid).children(recursive=True):
        try:
            if "--type=renderer" in process.cmdline():
                sizes.append(process.memory_info().rss)
        except psutil.Error:  # it has ended
            continue
    return max(sizes)

"""A process of the runtime needs little memory and little time before its first reply."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatbot.checkpoint.export.lite import export_lite
from chatbot.checkpoint.location import resolve
from tests.conftest import ROOT

TALK = """
import json, sys, time
from xianliao_lite import Bot
bot = Bot(sys.argv[1], library=sys.argv[2])
first = next(bot.stream(["你好"], 1))
seconds = time.process_time()
for seed in range(5):
    bot.reply(["你好", "你好呀", "今天心情不太好"], seed)
status = open("/proc/self/status", encoding="utf-8").read()
print(json.dumps([seconds, 1024 * int(status.split("VmHWM:")[1].split()[0]), sorted(sys.modules)]))
"""


@pytest.mark.slow
def test_the_bundled_bot_needs_its_weights_and_thirty_megabytes(library, tmp_path):
    weights = tmp_path / "bot.xianliao"
    export_lite(resolve("default"), weights)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lite")}
    command = [sys.executable, "-c", TALK, str(weights), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=Path(tmp_path))
    seconds, peak, modules = json.loads(done.stdout)
    print(f"first token after {seconds:.2f} s of CPU time, peak {peak / 1e6:.1f} MB")
    assert not {"torch", "numpy", "transformers", "chatbot", "hashlib"} & set(modules)
    assert peak <= weights.stat().st_size + 30e6
    assert seconds < 1  # .3 s on an idle core

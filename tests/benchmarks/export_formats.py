"""Compare all exported forms with the Python bot: size, start, first token, tokens per second and memory, on one core each.

    python -m tests.benchmarks.export_formats [--output runs/exports] [--clock cpu] [--only NAME ...]

It prints the rows of the tables in docs/export.md and docs/lite.md and in their Chinese pages. Each form runs in its own
process, one after the other, by greedy decoding with one candidate. `start` is from the start of the process (of the page:
from loading it) to the first token of its first reply, `first token` from another message of 15 characters to its token,
`tokens/s` the best of three replies of at least 100 tokens with all rules of decoding that the form has, and `memory` the
peak of resident memory (of the page: the memory of its process). Times are by the clock on the wall, for a quiet machine; a
form that got less than 95 % of its core is named at the end. Needs the extras export and html, and Chromium for the page;
forms whose programs are missing are left out with a line that says so.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "default"
TEXT = "周末想出去走走，你说去哪里好呢"
LENGTH, REPLIES, FIRSTS = 100, 3, 7
LONG = {"min_reply_tokens": LENGTH, "floor_start_tokens": LENGTH}
STARTED, CLOCK = "XIANLIAO_BENCHMARK_STARTED", "XIANLIAO_BENCHMARK_CLOCK"


@dataclass(frozen=True)
class Form:
    """A row of the tables.

    Attributes:
        room, kind: Function that loads it, and its argument.
        name, chinese: Names in the tables.
        packages: What it needs besides Python, in both languages.
    """

    room: str
    kind: str
    name: str
    chinese: str
    packages: tuple[str, str]


OURS, HF, ONNX = ("xianliao",) * 2, ("torch, transformers", "torch、transformers"), ("onnxruntime, tokenizers",) * 2
ONNX = (ONNX[0], "onnxruntime、tokenizers")
FORMS = {
    "float32": Form("bot", "float32", "xianliao, compiled, float32", "xianliao，编译，float32", OURS),
    "int8": Form("bot", "int8", "xianliao, compiled, int8", "xianliao，编译，int8", OURS),
    "torch": Form("bot", "torch", "xianliao without a compiler", "xianliao，没有编译器", OURS),
    "lite": Form("lite", "", "lite: xianliao-lite", "lite：xianliao-lite", ("xianliao-lite", "xianliao-lite")),
    "html": Form("html", "", "html: one page", "html：单个网页", ("a browser", "浏览器")),
    "hf": Form("hf", "", "hf: transformers", "hf：transformers", HF),
    "onnx": Form("onnx", "model.onnx", "onnx: model.onnx", "onnx：model.onnx", ONNX),
    "onnx8": Form("onnx", "model_int8.onnx", "onnx: model_int8.onnx", "onnx：model_int8.onnx", ONNX),
    "onnx27": Form("onnx", "model_opset27.onnx", "onnx: model_opset27.onnx", "onnx：model_opset27.onnx", ONNX),
}
OF_LITE = ("lite", "html", "int8", "float32")
"""Rows of docs/lite.md."""

HEADS = (
    "| form | packages | weights, MB | start, s | first token, ms | tokens/s | memory, MB |\n|---|---|--:|--:|--:|--:|--:|",
    "| 形式 | 需要的包 | 权重，MB | 启动，秒 | 第一个 token，毫秒 | token/秒 | 内存，MB |\n|---|---|--:|--:|--:|--:|--:|",
)


@dataclass(frozen=True)
class Result:
    """Measured values: megabytes, seconds, milliseconds, tokens per second, megabytes, and the share of a core."""

    size: float
    start: float
    first: float
    speed: float
    memory: float
    share: float | None

    def row(self, name: str, packages: str) -> str:
        """Return a row of a table."""
        values = f"{self.size:.1f} | {self.start:.2f} | {self.first:.0f} | {self.speed:.0f} | {self.memory:.0f}"
        return f"| {name} | {packages} | {values} |"


Answer = Callable[[int, str], int]
"""Function that answers a message with at most N tokens; it returns their number, the end of turn included."""


class Unavailable(Exception):
    """A program that a form needs is missing; the message names it."""


def bot(kind: str, folder: Path) -> Answer:
    """Return the Python bot."""
    os.environ["XIANLIAO_NATIVE"] = "0" if kind == "torch" else "1"
    import torch

    torch.set_num_threads(1)
    from chatbot.chat.bot import Chatbot

    python_bot = Chatbot.from_pretrained("default", "cpu", "int8" if kind == "int8" else "float32", safety=None)

    def answer(tokens: int, message: str) -> int:
        changes = LONG if tokens > 1 else {"max_reply_tokens": 1}
        return len(python_bot.respond([message], seed=0, method="greedy", **changes).token_ids) + 1

    return answer


def lite(kind: str, folder: Path) -> Answer:
    """Return the runtime in C."""
    sys.path.insert(0, str(ROOT / "lite"))
    from xianliao_lite import Bot

    lite_bot = Bot(folder / "bot.xianliao", safety=False, library=folder / "xianliao.so")

    def answer(tokens: int, message: str) -> int:
        changes = LONG if tokens > 1 else {"max_reply_tokens": 1}
        return len(lite_bot.reply([message], seed=0, method="greedy", **changes).token_ids) + 1

    return answer


def hf(kind: str, folder: Path) -> Answer:
    """Return the model by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf", trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", trust_remote_code=True)

    def answer(tokens: int, message: str) -> int:
        messages = [{"role": "user", "content": message}]
        prompt = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
        changes = LONG if tokens > 1 else {"max_new_tokens": 1}
        return model.generate(**prompt, do_sample=False, **changes).shape[1] - prompt["input_ids"].shape[1]

    return answer


def onnx(kind: str, folder: Path) -> Answer:
    """Return the example for onnxruntime."""
    spec = importlib.util.spec_from_file_location("onnx_chat", ROOT / "examples" / "onnx_chat.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chat = module.OnnxChat(folder / "onnx", kind)
    chat.settings |= LONG

    def answer(tokens: int, message: str) -> int:
        chat.turns = []
        chat.forget()
        if tokens == 1:
            chat.turns.append(chat.tokenizer.encode(message, add_special_tokens=False).ids)
            chat.choose(chat.read_turn(0, True), [], (), True, None)
            return 1
        chat.reply(message, greedy=True)
        return len(chat.turns[-1]) + 1

    return answer


def measure(form: Form, folder: Path) -> Result:
    """Measure a form in this process."""
    if form.room == "html":
        from tests.benchmarks.export_page import measure_page

        return measure_page(folder / "bot.html", [TEXT[number:] + TEXT[:number] for number in range(FIRSTS)])
    on_wall = os.environ.get(CLOCK) != "cpu"
    answer = {"bot": bot, "hf": hf, "onnx": onnx, "lite": lite}[form.room](form.kind, folder)
    answer(1, TEXT)
    start = time.time() - float(os.environ[STARTED]) if on_wall else time.process_time()
    firsts = [_seconds(answer, 1, number) for number in range(1, FIRSTS + 1)]
    longs = [_seconds(answer, LENGTH, number) for number in range(REPLIES)]
    clock = 1 if on_wall else 2
    rates = [each[0] / each[clock] for each in longs]
    share = sum(each[2] for each in longs) / sum(each[1] for each in longs)
    paths = {"bot": CHECKPOINT / "model.safetensors", "hf": folder / "hf" / "model.safetensors"}
    size = {**paths, "lite": folder / "bot.xianliao"}.get(form.room, folder / "onnx" / form.kind).stat().st_size / 1e6
    first = sorted(each[clock] for each in firsts)[FIRSTS // 2]
    return Result(size, start, 1000 * first, max(rates), _peak_bytes() / 1e6, share)


def _peak_bytes() -> int:
    """Return the peak of resident memory; `ru_maxrss` could be the peak of the process that started this one."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _seconds(answer: Answer, tokens: int, number: int) -> tuple[int, float, float]:
    """Answer a message that the bot does not remember; return tokens, wall seconds and CPU seconds."""
    message = TEXT[number:] + TEXT[:number]
    wall, cpu = time.perf_counter(), time.process_time()
    count = answer(tokens, message)
    return count, time.perf_counter() - wall, time.process_time() - cpu


def export(room: str, folder: Path) -> None:
    """Write the files of an exported form if they do not exist; `room` names the function that loads them.

    Raises:
        Unavailable: A package or program is missing.
    """
    names = {"lite": "bot.xianliao", "html": "bot.html", "hf": "hf", "onnx": "onnx"}
    if room == "html" and importlib.util.find_spec("ziglang") is None:
        raise Unavailable("the page is built with zig: pip install ziglang")
    if room in names and not (folder / names[room]).exists():
        command = [
            "-m",
            "chatbot.checkpoint.export.cli",
            "default",
            "--to",
            room,
            "--output",
            str(folder / names[room]),
        ]
        if subprocess.run([sys.executable, *command], stdout=sys.stderr, cwd=ROOT, check=False).returncode:
            raise Unavailable(f"xianliao-export --to {room} failed")
    if room == "lite" and not (folder / "xianliao.so").exists():
        from chatbot.native.building import build_native, build_with_zig

        systems = {"x86_64": "linux-x86_64", "aarch64": "linux-aarch64"}
        if importlib.util.find_spec("ziglang") is None:
            build_native(folder / "xianliao.so")
        else:  # the library of the wheels
            build_with_zig(systems[platform.machine()], folder / "xianliao.so")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/exports"), help="folder for the exported checkpoints")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="clock of all forms but the page")
    parser.add_argument("--only", nargs="+", choices=FORMS, default=list(FORMS), help="forms to measure (default: all)")
    parser.add_argument("--here", choices=FORMS, help="measure one form in this process")
    args = parser.parse_args()
    weights = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    folder = args.output.resolve() / weights[:12]  # files of another bot are not measured
    folder.mkdir(parents=True, exist_ok=True)
    if args.here:
        print(json.dumps(asdict(measure(FORMS[args.here], folder))))
        return
    results: dict[str, Result] = {}
    for name in args.only:
        form = FORMS[name]
        try:
            export(form.room, folder)
        except Unavailable as error:
            print(f"{form.name} is left out: {error}", file=sys.stderr)
            continue
        environment = {**os.environ, "OMP_NUM_THREADS": "1", CLOCK: args.clock, STARTED: str(time.time())}
        command = ["-m", "tests.benchmarks.export_formats", "--output", str(args.output), "--here", name]
        done = subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            print(f"{form.name} is left out: {(done.stderr.splitlines() or ['?'])[-1]}", file=sys.stderr)
            continue
        results[name] = Result(**json.loads(done.stdout.splitlines()[-1]))
        print(results[name].row(form.name, form.packages[0]), file=sys.stderr)
    for page, rows in (("docs/export", FORMS), ("docs/lite", OF_LITE)):
        for language, ending in enumerate((".md", ".zh.md")):
            print(f"\n{page}{ending}\n\n{HEADS[language]}")
            for name in rows:
                if name in results:
                    form = FORMS[name]
                    print(results[name].row((form.name, form.chinese)[language], form.packages[language]))
    busy = [
        f"{FORMS[name].name} {100 * each.share:.0f} %" for name, each in results.items() if (each.share or 1) < 0.95
    ]
    if busy:
        print(f"\nThe machine is busy. Shares of a core: {', '.join(busy)}. Measure again, or use --clock cpu.")


if __name__ == "__main__":
    main()

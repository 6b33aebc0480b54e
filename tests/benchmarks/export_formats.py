"""Exported folders beside the Python bot: size, start, first token, tokens per second and memory, one thread each.

    python -m tests.benchmarks.export_formats [--output runs/exports]

Each form runs in its own process. All times are processor time, so that a busy machine changes them little: `start` is from
the start of the process to the first token of its first reply, `first token` from another first message (15 characters) to
its token, `tokens/s` counts a greedy reply of at least 100 tokens, with all rules of decoding that the form has.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = "周末想出去走走，你说去哪里好呢"
LENGTH = 100
LONG = {"min_reply_tokens": LENGTH, "floor_start_tokens": LENGTH}

FORMS = {
    "xianliao, compiled, float32": ("bot", "float32"),
    "xianliao, compiled, int8": ("bot", "int8"),
    "xianliao without a compiler": ("bot", "torch"),
    "hf: transformers": ("hf", "hf"),
    "onnx: model.onnx": ("onnx", "model.onnx"),
    "onnx: model_int8.onnx": ("onnx", "model_int8.onnx"),
    "onnx: model_opset27.onnx": ("onnx", "model_opset27.onnx"),
}


Answer = Callable[[int, str], int]
"""Answers a message with at most so many tokens and returns their number."""


def bot(kind: str, folder: Path) -> Answer:
    os.environ["XIANLIAO_NATIVE"] = "0" if kind == "torch" else "1"
    import torch

    torch.set_num_threads(1)
    from chatbot.chat.bot import Chatbot

    one = Chatbot.from_pretrained("default", "cpu", "int8" if kind == "int8" else "float32", safety=None)

    def answer(tokens: int, message: str) -> int:
        changes = LONG if tokens > 1 else {"max_reply_tokens": 1}
        return len(one.respond([message], seed=0, method="greedy", **changes).token_ids) + 1

    return answer


def hf(kind: str, folder: Path) -> Answer:
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


def measure(form: str, folder: Path) -> str:
    """Return the row of a form."""
    room, kind = FORMS[form]
    answer = {"bot": bot, "hf": hf, "onnx": onnx}[room](kind, folder)
    answer(1, TEXT)
    start = time.process_time()
    firsts = [_seconds(answer, 1, number)[0] for number in range(1, 11)]
    rates = [tokens / seconds for seconds, tokens in (_seconds(answer, LENGTH, number) for number in range(5))]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    path = {"bot": ROOT / "checkpoints" / "default" / "model.safetensors", "hf": folder / "hf" / "model.safetensors"}
    size = path.get(room, folder / "onnx" / kind).stat().st_size / 1e6
    first = sorted(firsts)[len(firsts) // 2]
    return f"| {form} | {size:.1f} | {start:.1f} | {1000 * first:.0f} | {max(rates):.0f} | {memory:.0f} |"


def _seconds(answer: Answer, tokens: int, number: int) -> tuple[float, int]:
    message = TEXT[number:] + TEXT[:number]  # the bot remembers what it has read
    started = time.process_time()
    count = answer(tokens, message)
    return time.process_time() - started, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/exports"), help="folder for the exported checkpoints")
    parser.add_argument("--form", choices=FORMS, help="measure only this form, in this process")
    args = parser.parse_args()
    if args.form:
        print(measure(args.form, args.output))
        return
    for name in ("hf", "onnx"):
        if not (args.output / name).is_dir():
            command = ["default", "--to", name, "--output", str(args.output / name)]
            subprocess.run(
                [sys.executable, "-m", "chatbot.checkpoint.export.cli", *command], check=True, stdout=sys.stderr
            )
    print("| form | weights, MB | start, s | first token, ms | tokens/s | memory, MB |\n|---|--:|--:|--:|--:|--:|")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for form in FORMS:
        command = ["-m", "tests.benchmarks.export_formats", "--output", str(args.output), "--form", form]
        subprocess.run([sys.executable, *command], check=True, env=environment, cwd=ROOT)


if __name__ == "__main__":
    main()

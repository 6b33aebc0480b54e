"""Stand-in for xianliao-prepare and xianliao-train: writes what they write, in milliseconds. Arguments: the command."""

import json
import os
import pathlib
import signal
import sys
import time

words = sys.argv[1:]
output = pathlib.Path(words[words.index("--output") + 1])


def say(text):
    print(text, file=sys.stderr, flush=True)


def prepare():
    text = pathlib.Path(words[words.index("--input") + 1]).read_text(encoding="utf-8")
    if "broken" in text:
        say("settings by flag: x")
        say("xianliao-prepare: error: /a b.txt does not exist. Check the path.")
        sys.exit(1)
    splits = {"train": {"dialogues": 7}, "valid": {"dialogues": 2}}
    counts = {"read": 10, "kept_whole": 9, "split": 0, "dropped": 1}
    manifest = {"dialogues": counts, "dropped": {"one_turn": 1}, "dirty_turns": {}, "changed_turns": {"repeats": 3}}
    (output / "report").mkdir(parents=True)
    (output / "manifest.json").write_text(json.dumps({**manifest, "splits": splits}))
    head = "| reason | count | explanation |\n| --- | --: | --- |\n"
    (output / "report" / "report.md").write_text(
        f"## Dialogues dropped\n\n{head}| one_turn | 1 |"
        " a single turn, alone or between removed turns, which has no answer |\n"
        f"\n## Turns changed in cleaning\n\n{head}| repeats | 3 | shorter |\n"
        "\n## Examples of each rule\n\n| rule | before | after |\n| --- | --- | --- |\n| repeats | `哈哈哈哈哈` | `哈哈` |\n"
    )
    print("set: 10 dialogues read\ndialogue 1: 2 turns, 6 tokens\n  person: 你好\n  bot: 在吗")


def train():
    preset = words[words.index("--config") + 1]
    if "--dry-run" in words:
        print("model: 18.65M parameters, 18.65M of them trained\nmemory: about 1.0 GB")
        return
    if "bad" in preset:
        say("error: Loss nan")
        sys.exit(1)
    say(f"niceness {os.nice(0)}, resumed {'--resume' in words}")
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: (stopped.append(1), signal.signal(signal.SIGTERM, signal.SIG_DFL)))
    (output / "resume" / "step-1").mkdir(parents=True, exist_ok=True)
    with (output / "metrics.jsonl").open("a") as log:
        for step in (1, 2):
            log.write(json.dumps({"step": step, "loss": 5.0 - step, "tokens_per_second": 100.0}) + "\n")
        log.write(json.dumps({"step": 3, "loss": 1.5, "valid_nats_per_unit": 3.5}) + "\n")
    sys.stderr.write("\rtraining:  67%|██████▋   | 2/3 [00:13<00:06,  6.78s/step, loss=5.053]")
    sys.stderr.flush()
    while "endless" in preset and "--resume" not in words:
        if stopped:
            say("stopped by SIGTERM and saved; continue with --resume")
            sys.exit(130)
        time.sleep(0.005)
    (output / "model.safetensors").touch()
    (output / "training.json").write_text(
        json.dumps({"before": 4.0, "best": 3.5, "best_step": 3, "step": 3, "valid_dialogues": 2})
    )
    samples = [{"step": step, "prompt": ["在吗"], "reply": reply} for step, reply in ((0, "不在"), (3, "在呢"))]
    (output / "samples.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in samples))


prepare() if words[0] == "xianliao-prepare" else train()

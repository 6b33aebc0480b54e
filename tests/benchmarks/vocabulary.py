"""Comparison of vocabularies: held-out nats/unit at equal compute, with only the tokenizer different.

    python -m tests.benchmarks.vocabulary --output runs/vocabulary \\
        --input LCCC-base_valid.json cdial_toy_train.txt dgk_subtitles.jsonl.xz

It prepares a set for every candidate from the same dialogues, trains the same body on it for the same number of
floating-point operations, and scores the same held-out dialogues. Operations are 6 per weight and token, the
output head included. So a model with a larger vocabulary sees fewer tokens, but these are longer and cover more text.
Finished runs are skipped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from chatbot.checkpoint.folder import load_model
from chatbot.model.scoring import score_turns
from chatbot.text.layouts import LAYOUTS
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.pipeline import build
from data_prep.settings import PrepareSettings
from training.data.turn_store import TurnStore
from training.reporting.throughput import flops_per_token
from training.run import train
from training.settings import ModelSettings, TrainSettings
from training.setup import build_model

CANDIDATES = {
    "characters": PrepareSettings(word_count=10**9),
    "pairs, 4,096": PrepareSettings(vocab_size=4096),
    "pairs, 8,192": PrepareSettings(vocab_size=8192),
    "pairs, 16,384": PrepareSettings(vocab_size=16384),
    "words seen 10 times, 8,192": PrepareSettings(vocab_size=8192, word_count=10),
    "words seen 10 times, 16,384": PrepareSettings(vocab_size=16384, word_count=10),
}
BODY = ModelSettings(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768)
ROW, ROWS = 256, 8


def folder_of(name: str, args: argparse.Namespace) -> Path:
    """Return the folder of a candidate."""
    return Path(args.output) / name.replace(",", "").replace(" ", "_")


def run(name: str, seed: int, args: argparse.Namespace) -> str:
    """Train and score a candidate with a seed, and return its row of the table."""
    data = folder_of(name, args) / "data"
    manifest = build(args.input, data, CANDIDATES[name])
    tokenizer = DialogueTokenizer.load(data)
    flops = flops_per_token(build_model(BODY, tokenizer))
    steps = int(args.flops / flops / (ROW * ROWS))
    output = folder_of(name, args) / f"model-{seed}"
    if not (output / "model.safetensors").exists() or load_steps(output) < steps:
        train(
            TrainSettings(
                data=[str(data)],
                output=str(output),
                model=BODY,
                epochs=1000,
                max_steps=steps,
                row_tokens=ROW,
                batch_rows=ROWS,
                micro_batch_rows=ROWS,
                optimizer="muon",
                learning_rate=args.learning_rate,
                warmup_steps=30,
                eval_every=10**6,
                eval_dialogues=1,
                save_every=10**6,
                seed=seed,
                threads=1,
                device="cpu",
            )
        )
    nats, units = score(output, data, args.dialogues)
    train_split = manifest["splits"]["train"]
    per_token = (train_split["units"] - train_split["turns"]) / (train_split["tokens"] - train_split["turns"])
    seen = steps * ROW * ROWS
    return f"{tokenizer.vocab_size:,} | {per_token:.2f} | {flops / 1e6:.1f} | {seen / 1e6:.2f} | {nats / units:.4f}"


def load_steps(output: Path) -> int:
    """Return the number of steps that a run has made."""
    from training.reporting.logs import read_metrics

    return len(read_metrics(output))


def score(checkpoint: Path, data: Path, dialogues: int) -> tuple[float, int]:
    """Return nats and units of the first held-out dialogues, which do not depend on the tokenizer."""
    model, tokenizer, store = load_model(str(checkpoint)), DialogueTokenizer.load(data), TurnStore([str(data)], "valid")
    chosen = range(min(dialogues, len(store)))
    scored = score_turns(model, LAYOUTS["dialogpt"](tokenizer), [store.turns(index) for index in chosen])
    return sum(map(sum, scored)), int(sum(store.units[index] for index in chosen))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", nargs="+", required=True, help="files of dialogues")
    parser.add_argument("--output", required=True, help="folder for sets, models and the table")
    parser.add_argument("--only", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--flops", type=float, default=2.5e13, help="floating-point operations per run (default: %(default)s)"
    )
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--dialogues", type=int, default=1500, help="held-out dialogues to score")
    args = parser.parse_args()
    head = ["vocabulary", "tokens", "characters per token", "MFLOP per token", "M tokens seen", "nats/unit"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    for name in args.only:
        rows = [run(name, seed, args) for seed in args.seeds]
        mean = statistics.mean(float(row.rsplit(" ", 1)[1]) for row in rows)
        lines.append(f"| {name} | {rows[0].rsplit(' ', 1)[0]} {mean:.4f} |")
        (Path(args.output) / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

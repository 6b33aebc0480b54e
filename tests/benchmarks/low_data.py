"""Comparison of regularizers on 500 dialogues: a small pretrained model is fine-tuned with one option at a time.

    xianliao-prepare --input dgk_subtitles.jsonl.xz --tokenizer default --output runs/low/general
    xianliao-train --data runs/low/general --output runs/low/base --model.hidden-size 128 --model.num-hidden-layers 3 \\
        --model.num-attention-heads 2 --model.intermediate-size 512 --max-steps 300 --optimizer muon --learning-rate 5e-3
    xianliao-prepare --input LCCC-base_valid.json --tokenizer default --max-dialogues 10000 --valid-share 0.95 \\
        --output runs/low/chat
    python -m tests.benchmarks.low_data --init runs/low/base --data runs/low/chat --output runs/low/table

All candidates see the same dialogues in the same order; the seed changes order and noise. The table has the best
validation of a run, which is that of the checkpoint, and the last, which shows the overfitting.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from training.reporting.logs import read_metrics
from training.run import train
from training.settings import Regularization, TrainSettings

CANDIDATES = {
    "none": {},
    "dropout 0.1": {"dropout": 0.1},
    "dropout 0.3": {"dropout": 0.3},
    "noise 0.1": {"embedding_noise": 0.1},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "FGM 1": {"fgm": 1.0},
    "gradient penalty 1": {"gradient_penalty": 1.0},
    "VAT 1": {"vat": 1.0},
    "weight decay 0.5": {"weight_decay": 0.5},
}


def run(name: str, seed: int, args: argparse.Namespace) -> list[float]:
    """Train a candidate unless its run is finished, and return its validation in nats/unit, oldest first."""
    output = Path(args.output) / f"{name.replace(' ', '_')}-{seed}"
    options = dict(CANDIDATES[name])
    weight_decay = options.pop("weight_decay", 0.05)
    if len(read_metrics(output)) < args.steps:
        train(
            TrainSettings(
                data=[args.data],
                output=str(output),
                init=args.init,
                epochs=1000,
                max_steps=args.steps,
                row_tokens=128,
                batch_rows=16,
                micro_batch_rows=16,
                learning_rate=args.learning_rate,
                warmup_steps=5,
                weight_decay=weight_decay,
                regularization=Regularization(**options),
                eval_every=args.eval_every,
                eval_dialogues=300,
                save_every=10**6,
                seed=seed,
                threads=1,
                device="cpu",
            )
        )
    return [entry["valid_nats_per_unit"] for entry in read_metrics(output) if "valid_nats_per_unit" in entry]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a prepared set with a small train split")
    parser.add_argument("--init", required=True, help="the checkpoint to fine-tune")
    parser.add_argument("--output", required=True)
    parser.add_argument("--only", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eval_every", type=int, default=10)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    lines = ["| regularizer | best, nats/unit | last |", "|---|--:|--:|"]
    for name in args.only:
        runs = [run(name, seed, args) for seed in args.seeds]
        cells = [[min(values) for values in runs], [values[-1] for values in runs]]
        text = [f"{statistics.mean(c):.3f} ± {statistics.stdev(c) if len(c) > 1 else 0:.3f}" for c in cells]
        lines.append(f"| {name} | {' | '.join(text)} |")
        print(lines[-1], flush=True)
    (Path(args.output) / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Small runs behind the recipe of the bundled bot: data, their order, size and schedule.

    sh checkpoints/recipe/make.sh CORPORA runs/recipe data      # the prepared sets
    for n in 590 2360; do xianliao-prepare --input CORPORA/LCCC-base_valid.json --max-dialogues $n \\
        --tokenizer runs/recipe/tokens --words checkpoints/recipe/words.txt \\
        --output runs/recipe/lccc-$n; done      # for the rows with these names
    python -m tests.benchmarks.recipe --sets runs/recipe --output runs/recipe_table

Every run has the same number of operations (6 per weight and token) and is scored on the validation splits of LCCC and
of the long dialogues. Finished runs are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

from chatbot.text.tokenizer import DialogueTokenizer
from tests.benchmarks.bakeoff import score
from training.run import train
from training.settings import ModelSettings, StageSettings, TrainSettings
from training.setup import build_model

SHAPE = ModelSettings(hidden_size=128, num_hidden_layers=4, num_attention_heads=2, head_dim=64, intermediate_size=512)
MIXED = ["chat:2", "dgk", "long", "smile:0.5"]
"""Mixture of the first stage: all sets in about their size, and half of the model-written counselling (smile)."""


def stages(*parts: tuple[list[str], float, float, float]) -> list[dict]:
    """Return the stages from (sets, share of the operations, peak learning rate, final share of the rate)."""
    return [
        dict(zip(("data", "share", "learning_rate", "final_learning_rate_share"), part, strict=True)) for part in parts
    ]


RATE = 5e-3
CANDIDATES: dict[str, dict] = {
    "chat alone": {"stages": stages((["chat"], 1, RATE, 0))},
    "everything mixed, one cosine": {"stages": stages((MIXED, 1, RATE, 0))},
    "everything 60 %, then chat 40 %": {"stages": stages((MIXED, 0.6, RATE, 1), (["chat"], 0.4, RATE, 0))},
    "everything 80 %, then chat 20 %": {"stages": stages((MIXED, 0.8, RATE, 1), (["chat"], 0.2, RATE, 0))},
    "everything 80 %, then chat with a tenth of the subtitles": {
        "stages": stages((MIXED, 0.8, RATE, 1), (["chat", "dgk:0.1"], 0.2, RATE, 0))
    },
    "chat 20 %, then everything (the wrong order)": {"stages": stages((["chat"], 0.2, RATE, 1), (MIXED, 0.8, RATE, 0))},
    "without subtitles": {"stages": stages((["chat:2", "long", "smile:0.5"], 0.8, RATE, 1), (["chat"], 0.2, RATE, 0))},
    "without long dialogues": {"stages": stages((["chat:2", "dgk"], 0.8, RATE, 1), (["chat"], 0.2, RATE, 0))},
    "width 96": {"model": {"hidden_size": 96, "intermediate_size": 384}},
    "width 192, 3 heads": {"model": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}},
    "8 layers": {"model": {"num_hidden_layers": 8}},
    "batch 2 times": {"batch_rows": 16},
    "batch 1/2": {"batch_rows": 4},
    "batch grows: 4 rows, then 16": {"grows": True},
    "dropout 0.1": {"dropout": 0.1},
    "rate 1/2": {"rate": 0.5},
    "rate 2 times": {"rate": 2},
    "AdamW, rate 1e-3": {"optimizer": "adamw", "rate": 0.2},
    "AdamW, rate 2e-3": {"optimizer": "adamw", "rate": 0.4},
    "AdamW, rate 4e-3": {"optimizer": "adamw", "rate": 0.8},
    "weights averaged, .98": {"weight_average": 0.98},
    "LCCC alone, half a pass": {"stages": stages((["lccc"], 1, RATE, 0))},
    "LCCC alone, four passes over 2,360 dialogues": {"stages": stages((["lccc-2360"], 1, RATE, 0))},
    "LCCC alone, 16 passes over 590 dialogues": {"stages": stages((["lccc-590"], 1, RATE, 0))},
    "constant rate, weights averaged, .98": {
        "stages": stages((MIXED, 0.8, RATE, 1), (["chat"], 0.2, RATE, 1)),
        "weight_average": 0.98,
    },
    "constant rate to the end": {"stages": stages((MIXED, 0.8, RATE, 1), (["chat"], 0.2, RATE, 1))},
}
SCORED = ("lccc", "long")
REFERENCE = "everything 80 %, then chat 20 %"


def settings_of(name: str, args: argparse.Namespace) -> TrainSettings:
    """Return the training settings of a candidate."""
    candidate = {**CANDIDATES[REFERENCE], **CANDIDATES[name]}
    sets = Path(args.sets)
    tokenizer = DialogueTokenizer.load(str(sets / "chat"))
    model = replace(SHAPE, **candidate.get("model", {}))
    weights = build_model(model, tokenizer).num_parameters()
    tokens = args.flops / (6 * weights)
    run_stages = []
    for number, stage in enumerate(candidate["stages"]):
        rows = candidate.get("batch_rows", 8)
        if candidate.get("grows"):
            rows = (4, 16)[number]
        run_stages.append(
            StageSettings(
                data=[str(sets / source) for source in stage["data"]],
                epochs=1000,
                max_steps=math.ceil(stage["share"] * tokens / (rows * args.row_tokens)),
                batch_rows=rows,
                learning_rate=candidate.get("rate", 1) * stage["learning_rate"],
                final_learning_rate_share=stage["final_learning_rate_share"],
                warmup_steps=1 if number else 20,
            )
        )
    settings = TrainSettings(
        data=run_stages[-1].data,
        output=str(Path(args.output) / name.replace(" ", "_").replace("/", "-")),
        model=model,
        stages=run_stages,
        row_tokens=args.row_tokens,
        micro_batch_rows=4,
        optimizer=candidate.get("optimizer", "muon"),
        weight_average=candidate.get("weight_average", 0.0),
        eval_every=10**6,
        eval_dialogues=50,
        save_every=50,
        threads=args.threads,
        device="cpu",
    )
    return replace(settings, regularization=replace(settings.regularization, dropout=candidate.get("dropout", 0.0)))


def run(name: str, args: argparse.Namespace) -> dict:
    """Train and score one candidate; a run with a result.json is finished."""
    settings = settings_of(name, args)
    done = Path(settings.output) / "result.json"
    if not done.is_file():
        started = any(Path(settings.output).glob("resume/step-*"))
        record = train(replace(settings, resume=started))
        scores = {label: score(settings.output, str(Path(args.sets) / label), 10**6, 1024)["all"] for label in SCORED}
        result = {label: nats / units for label, (nats, units) in scores.items()} | {"tokens": record["tokens"]}
        done.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return json.loads(done.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", required=True, help="folder of the prepared sets that the candidates use")
    parser.add_argument("--output", required=True)
    parser.add_argument("--only", nargs="+", default=list(CANDIDATES))
    parser.add_argument(
        "--flops", type=float, default=6e12, help="floating-point operations per run, 6 per weight and token"
    )
    parser.add_argument("--row_tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    lines = ["| recipe | tokens, thousands | LCCC, nats/unit | long dialogues |", "|---|--:|--:|--:|"]
    for name in args.only:
        result = run(name, args)
        lines.append(f"| {name} | {result['tokens'] / 1000:.0f} | {result['lccc']:.3f} | {result['long']:.3f} |")
        print(lines[-1], flush=True)
    (Path(args.output) / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

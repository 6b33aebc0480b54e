"""Bake-off of the mixers on dialogues, at equal parameters, equal tokens and with the same batches.

    python -m tests.benchmarks.bakeoff --data runs/bakeoff_chat runs/bakeoff_long --output runs/bakeoff

Each run is `xianliao-train` with the shape below; the feed-forward width compensates for the parameters of the mixer.
Rows have 256 tokens, and long dialogues are also scored far beyond that. Finished runs are skipped, so the command can
be stopped and started again. It writes table.md at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from chatbot.checkpoint.folder import load_model
from chatbot.model.layer_types import LAYER_TYPES
from chatbot.model.scoring import score_turns
from chatbot.text.dialogue import count_units
from chatbot.text.layouts import LAYOUTS
from chatbot.text.tokenizer import DialogueTokenizer
from tests.benchmarks.measure import alternate
from training.data.turn_store import TurnStore
from training.optim.memory import keep_freed_memory
from training.run import train
from training.settings import ModelSettings, TrainSettings
from training.setup import build_model

ROW = 256
SHAPE = ModelSettings(
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=3,
    head_dim=64,
    intermediate_size=768,
    max_position_embeddings=ROW,
    sliding_window=128,
    output_gate=False,
    short_conv=0,
)
EXTRAS = {"": {}, "+conv": {"short_conv": 4}, "+gate": {"output_gate": True}}
HYBRIDS = {
    f"{name}:sliding {share}:1": [name] * share + ["sliding_softmax"]
    for name in ("linear_gated", "gated_delta", "linear_elu1")
    for share in (3, 1)
} | {"sliding first 1:1": ["sliding_softmax", "linear_gated"]}
ROTATED = ("linear_elu1", "linear_softmax_feat", "linear_taylor1", "linear_taylor2")
"""Mixers without any sense of order; if a model has no other mixer, their queries and keys are rotated."""
STRETCHES = {"early": (0, 64), "late": (64, ROW), "beyond": (ROW, 4 * ROW)}
"""Groups of turns by the position of their first token in the dialogue."""


@dataclass(frozen=True)
class Candidate:
    """Mixers and extras that are trained and scored; one row of the table."""

    name: str
    model: ModelSettings


def candidates() -> dict[str, Candidate]:
    """Return all candidates: a mixer or hybrid (`rope`: rotated linear layers), then `+conv`, `+gate` or both."""
    bases = {name: replace(SHAPE, layer_types=[name], linear_rope=name in ROTATED) for name in LAYER_TYPES}
    bases |= {name: replace(SHAPE, layer_types=mixers) for name, mixers in HYBRIDS.items()}
    bases |= {f"{name} rope": replace(bases[name], linear_rope=True) for name in HYBRIDS if name.startswith(ROTATED)}
    extras = {**EXTRAS, "+conv+gate": {**EXTRAS["+conv"], **EXTRAS["+gate"]}}
    shapes = {
        base + suffix: replace(shape, **changes) for base, shape in bases.items() for suffix, changes in extras.items()
    }
    return {name: Candidate(name, shape) for name, shape in shapes.items()}


def with_equal_parameters(model: ModelSettings, tokenizer: DialogueTokenizer) -> ModelSettings:
    """Return the shape with the feed-forward width that gives it as many parameters as plain softmax, to 1 %."""

    def parameters(shape: ModelSettings) -> int:
        return build_model(shape, tokenizer).num_parameters()

    wanted = parameters(replace(SHAPE, layer_types=["softmax"]))
    width = model.intermediate_size + (wanted - parameters(model)) // (2 * SHAPE.hidden_size * SHAPE.num_hidden_layers)
    if width < 16:
        raise SystemExit(
            f"{model.layer_types} has too many parameters for this size. Choose another mixer with --only."
        )
    return replace(model, intermediate_size=width)


def settings_of(candidate: Candidate, seed: int, args: argparse.Namespace) -> TrainSettings:
    """Return the training settings of a run."""
    tokens = ROW * args.batch_rows
    return TrainSettings(
        data=args.data,
        output=str(Path(args.output) / f"{candidate.name.replace(':', '_').replace(' ', '_')}-{seed}"),
        model=with_equal_parameters(candidate.model, DialogueTokenizer.load(args.data[0])),
        epochs=1000,
        max_steps=args.tokens // tokens,
        row_tokens=ROW,
        batch_rows=args.batch_rows,
        micro_batch_rows=args.batch_rows,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        warmup_steps=50,
        eval_every=10**6,
        eval_dialogues=1,
        save_every=10**6,
        seed=seed,
        threads=args.threads,
        device="cpu",
    )


def score(checkpoint: str, folder: str, dialogues: int, max_tokens: int) -> dict[str, list[float]]:
    """Return nats and units of the validation dialogues of a prepared set, in total and for each of `STRETCHES`."""
    model, tokenizer = load_model(checkpoint), DialogueTokenizer.load(folder)
    store = TurnStore([folder], "valid")
    chosen = [store.turns(index) for index in range(min(dialogues, len(store)))]
    is_limited = any(name.startswith("synthesizer") for name in model.config.layer_types)
    chosen = [_first_turns(turns, ROW if is_limited else max_tokens) for turns in chosen]
    sums = {name: [0.0, 0] for name in ("all", *STRETCHES)}
    for turns, nats in zip(chosen, score_turns(model, LAYOUTS["dialogpt"](tokenizer), chosen), strict=True):
        start = 1
        for turn, value in zip(turns, nats, strict=True):
            units = count_units([tokenizer.decode(turn)])
            stretches = [name for name, (low, high) in STRETCHES.items() if low <= start < high]
            for name in ["all", *stretches]:
                sums[name] = [sums[name][0] + value, sums[name][1] + units]
            start += len(turn) + 1
    return sums


def _first_turns(turns: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Return the first turns that fit into a number of tokens."""
    total, fitting = 1, []
    for turn in turns:
        total += len(turn) + 1
        if total > max_tokens:
            break
        fitting.append(turn)
    return fitting


def run(candidate: Candidate, seed: int, args: argparse.Namespace) -> None:
    """Train and score one candidate; a run with a result.json is finished."""
    settings = settings_of(candidate, seed, args)
    done = Path(settings.output) / "result.json"
    if done.is_file():
        return
    record = train(settings)
    scores = [score(settings.output, folder, args.dialogues, 4 * ROW) for folder in args.data]
    result = {"name": candidate.name, "seed": seed, "tokens": record["tokens"], "model": asdict(settings.model)}
    state = load_model(settings.output)
    result |= {"parameters": state.num_parameters(), "scores": dict(zip(args.data, scores, strict=True))}
    done.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(candidate.name, seed, _ratio(scores[0]["all"]), _ratio(scores[-1]["all"]), flush=True)


def _ratio(pair: list[float]) -> float | None:
    return round(pair[0] / pair[1], 4) if pair[1] else None


def measure(output: Path, data: list[str], batch_rows: int, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Measure training tokens per CPU second on one thread and state bytes after a row, for every finished candidate.

    The candidates alternate, and medians are written to speed.json. Run it on a quiet machine.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    tokenizer = DialogueTokenizer.load(data[0])
    shapes = {result["name"]: result["model"] for result in _results(output)}
    models = {name: build_model(ModelSettings(**shape), tokenizer) for name, shape in shapes.items()}
    ids = torch.randint(3, tokenizer.vocab_size, (batch_rows, ROW))
    segments = (torch.arange(ROW) // 40).expand_as(ids)

    def step(model) -> None:
        model(input_ids=ids, segment_ids=segments, labels=ids).loss.backward()
        model.zero_grad()

    seconds = alternate({name: lambda model=model: step(model) for name, model in models.items()}, rounds)
    speeds = {}
    for name, model in models.items():
        with torch.inference_mode():
            state = model(ids[:1], use_cache=True).past_key_values
        speeds[name] = {"tokens_per_second": ids.numel() / seconds[name], "state_bytes": state.nbytes()}
    (output / "speed.json").write_text(json.dumps(speeds, indent=1), encoding="utf-8")
    return speeds


def _results(output: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*/result.json"))]


def table(output: Path, data: list[str]) -> str:
    """Return the Markdown table: one row per candidate, means over the seeds, best first."""
    runs: dict[str, list[dict]] = {}
    for result in _results(output):
        runs.setdefault(result["name"], []).append(result)
    speeds = json.loads((output / "speed.json").read_text()) if (output / "speed.json").is_file() else {}
    columns = [(data[0], "all"), *((data[-1], stretch) for stretch in ("all", *STRETCHES))]
    lines = [
        "| mixer | seeds | chat | long | early | late | beyond | both | tokens/s | state, KB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows = []
    for name, results in runs.items():
        cells = []
        for folder, stretch in columns:
            values = [_ratio(result["scores"][folder][stretch]) for result in results]
            if None in values:
                cells.append("refused")
                continue
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        both = statistics.mean(_both(result["scores"]) for result in results)
        speed = speeds.get(name)
        measured = (
            "| |" if speed is None else f"| {speed['tokens_per_second']:,.0f} | {speed['state_bytes'] / 1e3:,.0f} |"
        )
        rows.append((both, f"| {name} | {len(results)} | {' | '.join(cells)} | {both:.3f} {measured}"))
    return "\n".join(lines + [line for _, line in sorted(rows)])


def _both(scores: dict[str, dict]) -> float:
    """Return nats/unit over all held-out dialogues, chat and long."""
    pairs = [score["all"] for score in scores.values()]
    return sum(nats for nats, _ in pairs) / sum(units for _, units in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="prepared sets: chat first, long dialogues last")
    parser.add_argument("--output", required=True)
    parser.add_argument("--only", nargs="+", default=list(LAYER_TYPES), help=f"of {', '.join(candidates())}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch_rows", type=int, default=8)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--dialogues", type=int, default=1000, help="validation dialogues of each set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--measure", action="store_true", help="measure the speed of the finished candidates instead of training"
    )
    args = parser.parse_args()
    if args.measure:
        measure(Path(args.output), args.data, args.batch_rows)
        args.seeds = []
    known = candidates()
    for seed in args.seeds:
        for name in args.only:
            run(known[name], seed, args)
    text = table(Path(args.output), args.data)
    (Path(args.output) / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

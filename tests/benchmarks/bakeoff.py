"""The bake-off: every mixer at equal parameters, equal tokens and the same batches, on dialogues.

    python -m tests.benchmarks.bakeoff --data runs/bakeoff_chat runs/bakeoff_long --output runs/bakeoff

Each run is `xianliao-train` with the shape below, whose feed-forward width makes up for what the mixer needs. The rows
are 256 tokens, and long dialogues are also scored far beyond that. A run that is there is not made again, so the
command can be stopped and started; it ends by writing table.md and results.json.
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
"""Have no order of their own when they are alone: their queries and keys are rotated."""
STRETCHES = {"early": (0, 64), "late": (64, ROW), "beyond": (ROW, 4 * ROW)}
"""Turns by the position of their first token in the dialogue."""


@dataclass(frozen=True)
class Candidate:
    """One line of the table: mixers and extras."""

    name: str
    model: ModelSettings


def candidates() -> dict[str, Candidate]:
    """All that can be compared: a mixer or hybrid (`rope`: its linear layers are rotated), then `+conv`, `+gate` or both."""
    bases = {name: replace(SHAPE, layer_types=[name], linear_rope=name in ROTATED) for name in LAYER_TYPES}
    bases |= {name: replace(SHAPE, layer_types=mixers) for name, mixers in HYBRIDS.items()}
    bases |= {f"{name} rope": replace(bases[name], linear_rope=True) for name in HYBRIDS if name.startswith(ROTATED)}
    extras = {**EXTRAS, "+conv+gate": {**EXTRAS["+conv"], **EXTRAS["+gate"]}}
    found = {base + suffix: replace(shape, **more) for base, shape in bases.items() for suffix, more in extras.items()}
    return {name: Candidate(name, shape) for name, shape in found.items()}


def with_equal_parameters(model: ModelSettings, tokenizer: DialogueTokenizer) -> ModelSettings:
    """The shape with the feed-forward width that gives it as many parameters as plain softmax has, to 1 %."""

    def parameters(shape: ModelSettings) -> int:
        return build_model(shape, tokenizer).num_parameters()

    wanted = parameters(replace(SHAPE, layer_types=["softmax"]))
    width = model.intermediate_size + (wanted - parameters(model)) // (2 * SHAPE.hidden_size * SHAPE.num_hidden_layers)
    if width < 16:
        raise SystemExit(f"{model.layer_types} has too many parameters for this size.")
    return replace(model, intermediate_size=width)


def settings_of(candidate: Candidate, seed: int, args: argparse.Namespace) -> TrainSettings:
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


def score(checkpoint: str, folder: str, dialogues: int, most_tokens: int) -> dict[str, list[float]]:
    """Nats and units of the validation dialogues of a prepared set, in all and by stretch."""
    model, tokenizer = load_model(checkpoint), DialogueTokenizer.load(folder)
    store = TurnStore([folder], "valid")
    chosen = [store.turns(index) for index in range(min(dialogues, len(store)))]
    limited = any(name.startswith("synthesizer") for name in model.config.layer_types)
    chosen = [_first_turns(turns, ROW if limited else most_tokens) for turns in chosen]
    sums = {name: [0.0, 0] for name in ("all", *STRETCHES)}
    for turns, nats in zip(chosen, score_turns(model, LAYOUTS["dialogpt"](tokenizer), chosen), strict=True):
        start = 1
        for turn, value in zip(turns, nats, strict=True):
            units = count_units([tokenizer.decode(turn)])
            places = [name for name, (low, high) in STRETCHES.items() if low <= start < high]
            for name in ["all", *places]:
                sums[name] = [sums[name][0] + value, sums[name][1] + units]
            start += len(turn) + 1
    return sums


def _first_turns(turns: list[list[int]], most_tokens: int) -> list[list[int]]:
    total, kept = 1, []
    for turn in turns:
        total += len(turn) + 1
        if total > most_tokens:
            break
        kept.append(turn)
    return kept


def run(candidate: Candidate, seed: int, args: argparse.Namespace) -> None:
    """Trains and scores one candidate; its result.json is what makes it done."""
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
    """Training tokens per CPU second on one thread, and state bytes after a row, of every candidate that has a result.

    Shapes alternate, medians; for a quiet machine. Written to speed.json.
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
    found = {}
    for name, model in models.items():
        with torch.inference_mode():
            state = model(ids[:1], use_cache=True).past_key_values
        found[name] = {"tokens_per_second": ids.numel() / seconds[name], "state_bytes": state.nbytes()}
    (output / "speed.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _results(output: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*/result.json"))]


def table(output: Path, data: list[str]) -> str:
    """Markdown: one line a candidate, means over the seeds, best first."""
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
    """nats/unit over all held-out dialogues, chat and long."""
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
    parser.add_argument("--measure", action="store_true", help="train nothing; measure the speed of what is there")
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

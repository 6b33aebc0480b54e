"""Test of the claim of kexue.fm/archives/7469 that gradient clipping speeds training up.

    python -m tests.benchmarks.clipping_claim --data runs/prepared --output runs/clipping

It minimises theta^4 (from 10, rate 0.1, gamma 1: the example of the post), and trains a tiny GPT at a good learning
rate and at ten times that rate. It writes clipping.json and clipping.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

from chatbot.text.layouts import LAYOUTS
from chatbot.text.tokenizer import DialogueTokenizer
from training.data.packing import PackedData
from training.data.turn_store import TurnStore
from training.optim.clipping import clip_gradients
from training.settings import ModelSettings
from training.setup import build_model

KINDS = ("none", "norm", "soft")
DIVERGED = 20.0
"""Loss in nats/token at which a run has diverged: twice that of a uniform guess."""
SHAPE = ModelSettings(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, head_dim=64, intermediate_size=512)


def descend(kind: str, steps: int = 400, rate: float = 0.1, start: float = 10.0, gamma: float = 1.0) -> list[float]:
    """Return theta after each step of plain gradient descent on theta^4, in fp64; stop beyond 1e20."""
    theta = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    path = [start]
    for _ in range(steps):
        theta.grad = 4 * theta.detach() ** 3
        clip_gradients([theta], kind, gamma)
        with torch.no_grad():
            theta -= rate * theta.grad
        path.append(theta.item())
        if not abs(path[-1]) < 1e20:
            break
    return path


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),  # its steps are proportional to the gradient
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.95), fused=True),
}


def learn(kind: str, seed: int, rate: float, args: argparse.Namespace, data: PackedData, tokenizer: DialogueTokenizer):
    """Train a tiny GPT and return the loss in nats/token after each step; stop if it diverges."""
    torch.manual_seed(seed)
    model = build_model(SHAPE, tokenizer).train()
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), lr=rate)
    losses = []
    for step in range(args.steps):
        batches = data.batches(step // len(data.batches(0)))
        rows = batches[step % len(batches)]
        loss = model(**data.tensors(rows), num_items_in_batch=data.targets(rows)).loss
        loss.backward()
        clip_gradients(model.parameters(), kind, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not losses[-1] < DIVERGED:
            break
    return losses


def describe(runs: list[list[float]], steps: int) -> str:
    """Return the final loss over the seeds, in words."""
    ends = [statistics.mean(losses[-10:]) for losses in runs if len(losses) == steps and losses[-1] < DIVERGED]
    lost = len(runs) - len(ends)
    text = f"{statistics.mean(ends):.3f} nats/token over the last 10 steps" if ends else "no loss"
    spread = f" (± {statistics.stdev(ends):.3f})" if len(ends) > 1 else ""
    return f"{text}{spread}, {lost} of {len(runs)} seeds diverged"


def draw(paths: dict, runs: dict, rates: tuple[float, float], optimizer: str, file: Path) -> None:
    """Draw two plots side by side: theta^4, and the loss of the tiny GPT, one line per seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for kind, path in paths.items():
        left.plot([abs(theta) for theta in path], label=kind)
    left.set(
        title="theta^4 from 10, rate 0.1, gamma 1", xlabel="step", ylabel="|theta|", yscale="log", ylim=(1e-2, 1e4)
    )
    colours = {"none": "C0", "norm": "C1", "soft": "C2"}
    for (kind, rate), seeds in runs.items():
        for number, losses in enumerate(seeds):
            label = f"{kind}, rate {rate:g}" if number == 0 else None
            right.plot(
                losses, color=colours[kind], linestyle="-" if rate == rates[1] else ":", label=label, linewidth=0.8
            )
    right.set(title=f"tiny GPT, {optimizer}", xlabel="step", ylabel="nats/token", ylim=(4, 10))
    for axes in (left, right):
        axes.legend()
    figure.savefig(file, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a prepared set")
    parser.add_argument("--output", required=True)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument(
        "--rate", type=float, default=0.1, help="learning rate that is good without clipping (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = DialogueTokenizer.load(args.data)
    data = PackedData(TurnStore([args.data], "train"), LAYOUTS["dialogpt"](tokenizer), 128, 16, 0, tokenizer.pad_id)
    paths = {kind: descend(kind) for kind in KINDS}
    for kind, path in paths.items():
        print(f"theta^4, {kind}: |theta| = {abs(path[-1]):.4g} after {len(path) - 1} steps")
    rates, runs = (args.rate, 10 * args.rate), {}
    for kind in KINDS:
        for rate in rates:
            runs[kind, rate] = [learn(kind, seed, rate, args, data, tokenizer) for seed in range(args.seeds)]
            print(f"tiny GPT, {kind}, rate {rate:g}: {describe(runs[kind, rate], args.steps)}", flush=True)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    stored = {"theta": paths, "gpt": [{"kind": k, "rate": r, "losses": v} for (k, r), v in runs.items()]}
    (output / "clipping.json").write_text(json.dumps(stored), encoding="utf-8")
    draw(paths, runs, rates, args.optimizer, output / "clipping.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

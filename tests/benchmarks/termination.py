"""The termination table: share of replies that do not end, by model head and decoding method.

    python -m tests.benchmarks.termination --data runs/lccc --output runs/termination

It follows the tables of the papers (Welleck et al., arXiv 2002.02492, table 3; Choi et al., arXiv 2210.00660, table 2).
The bundled bot is trained further for the same number of steps with its softmax, with NMST, with ST, and with an NMST
whose bound is that of the EOS floor, one token earlier. Then all models answer the same contexts, at temperature 1 as
in the papers. Finished runs are skipped.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import resolve
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation import intervals, metrics
from chatbot.evaluation.answering import Answer, answer_all, make_contexts
from chatbot.evaluation.cache import ResultCache
from chatbot.model.scoring import score_dialogues
from chatbot.text.dialogue import count_units, join_spaces
from chatbot.text.dialogue_files import read_dialogues
from training.run import train
from training.settings import TrainSettings
from training.state.saved_state import saved_steps

EPSILON = 1e-3
DECODERS: dict[str, dict] = {
    "greedy": {"method": "greedy"},
    "top-k 2": {"top_k": 2, "top_p": 1.0},
    "top-k 4": {"top_k": 4, "top_p": 1.0},
    "nucleus .2": {"top_p": 0.2},
    "nucleus .4": {"top_p": 0.4},
    "nucleus .9": {"top_p": 0.9},
    "beam 2": {"method": "beam", "beams": 2},
    "beam 4": {"method": "beam", "beams": 4},
}
MODELS: dict[str, dict] = {
    "softmax": {},
    "nmst": {"termination": "nmst"},
    "st": {"termination": "st"},
    "nmst_floor": {"termination": "nmst"},
}
COLUMNS = {  # heading: model, whether truncation keeps EOS, whether the floor is on
    "plain": ("softmax", False, False),
    "consistent": ("softmax", True, False),
    "floor": ("softmax", True, True),
    "ST": ("st", False, False),
    "NMST": ("nmst", False, False),
    "NMST, delayed": ("nmst_floor", False, False),
}


def train_model(name: str, args: argparse.Namespace, floor: ReplySettings) -> None:
    """Train the bundled bot further with one of the heads, unless a finished run exists."""
    output = Path(args.output) / name
    settings = {"termination_epsilon": EPSILON, **MODELS[name]}
    if name == "nmst_floor":
        settings["termination_epsilon"] = round(1 - 2 ** (-1 / floor.floor_delta_tokens), 6)
        settings["termination_delay"] = floor.floor_start_tokens
    if not MODELS[name]:
        settings = {}
    steps = saved_steps(output)
    if steps and steps[-1].name == f"step-{args.steps:08d}":
        return
    train(
        TrainSettings(
            data=[args.data],
            output=str(output),
            init="default",
            resume=bool(steps),
            epochs=1000,
            max_steps=args.steps,
            row_tokens=512,
            batch_rows=8,
            micro_batch_rows=8,
            learning_rate=5e-4,
            warmup_steps=20,
            eval_every=125,
            save_every=50,
            threads=args.threads,
            device="cpu",
            **settings,
        )
    )


def answer_contexts(name: str, args: argparse.Namespace, defaults: ReplySettings) -> dict[str, dict[str, list[Answer]]]:
    """Return the answers of a model and their texts, by column and decoder."""
    bot = Chatbot.from_pretrained(Path(args.output) / name)
    contexts = make_contexts(list(read_dialogues(args.data)), args.contexts)
    methods = {}
    for column, (model, keep_eos, floor) in COLUMNS.items():
        if model != name:
            continue
        for decoder, changes in DECODERS.items():
            if column == "consistent" and changes.get("method", "sample") != "sample":
                continue  # these methods do not truncate, so the column would repeat "plain"
            without = {"repetition_penalty": 1.0, "no_repeat_ngram": 0, "repeat_cost": None}
            base = replace(defaults, temperature=1.0, keep_eos=keep_eos, **without, **changes)
            unbounded = {"floor_start_tokens": None, "max_reply_tokens": max(args.lengths)}
            methods[f"{column}/{decoder}"] = base if floor else replace(base, **unbounded)
    answers, _ = answer_all(bot, contexts, methods, args.seed, ResultCache(Path(args.output)))
    result: dict = {}
    for key, replies in answers.items():
        column, decoder = key.split("/")
        texts = [bot.tokenizer.decode_complete(answer.token_ids) for answer in replies]
        result.setdefault(column, {})[decoder] = (replies, texts)
    return result


def quality(name: str, args: argparse.Namespace) -> tuple[float, tuple[float, float]]:
    """Return nats/unit on the validation split and its interval."""
    bot = Chatbot.from_pretrained(Path(args.output) / name)
    dialogues = list(read_dialogues(args.data))
    ids = [[bot.tokenizer.encode(join_spaces(turn)) for turn in turns] for turns in dialogues]
    nats, units = score_dialogues(bot.model, bot.layout, ids), list(map(count_units, dialogues))
    return sum(nats) / sum(units), intervals.ratio(nats, units)


def to_markdown(answers: dict, qualities: dict, args: argparse.Namespace) -> str:
    """Return the table."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "--:|" * len(COLUMNS)]
    cells = [qualities[model] for model, _, _ in COLUMNS.values()]
    shown = [f"{value:.4f} ± {(high - low) / 2:.4f}" for value, (low, high) in cells]
    lines.append("| nats/unit | " + " | ".join(shown) + " |")
    for length in args.lengths:
        for decoder in DECODERS:
            row = []
            for column in COLUMNS:
                if decoder not in answers[column]:
                    row.append("as plain")
                    continue
                replies, _ = answers[column][decoder]
                sizes, ended = [len(a.token_ids) for a in replies], [a.stop_reason != "limit" for a in replies]
                share = metrics.unfinished_share(sizes, ended, length)
                row.append(f"{share:.3f}" if share else "0")
            lines.append(f"| r_{length} {decoder} | " + " | ".join(row) + " |")
    for decoder in DECODERS:
        row = []
        for column in COLUMNS:
            texts = answers[column].get(decoder, answers["plain"][decoder])[1]
            row.append(f"{metrics.mean(metrics.repetition_n(text, 4) for text in texts):.3f}")
        lines.append(f"| rep-4 {decoder} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.termination", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="a prepared set with the bundled tokenizer")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=250, help="training steps of 4,096 tokens (default: %(default)s)")
    parser.add_argument("--contexts", type=int, default=300)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256], help="L of r_L; the largest cuts off")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    defaults = Chatbot.from_pretrained(resolve("default")).settings
    answers: dict = {}
    qualities: dict = {}
    for name in MODELS:
        train_model(name, args, defaults)
        answers |= answer_contexts(name, args, defaults)
        qualities[name] = quality(name, args)
    table = to_markdown(answers, qualities, args)
    (Path(args.output) / "termination.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

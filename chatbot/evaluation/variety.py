"""Report on other ways to say a reply: are five candidates different from each other, and are they still good?

    python -m chatbot.evaluation.variety --checkpoint runs/varied --base default --data FILE --output DIR

For each method, two numbers are computed from the five candidates of every context: quality is their nats/unit under
the base model, and difference is 1 minus their mean pairwise likeness (1 - WRD). The methods compared are several
temperatures, several top-p values, diverse beam search at several strengths (`chatbot.decoding.beam.DiverseBeams`), and
variants of one seed at several spreads (`chatbot.chat.variants`). With a latent variable, variants are samples of it,
and the spread is the factor of the noise; without one, they are chosen among further candidate replies. A method is
better than temperature if its 95 % interval is above that of the temperatures at the same quality. If the checkpoint
has a latent variable, the report also gives its IWAE bound, active units, mutual information, shuffle test, gain by
position and token accuracy, and with a Gaussian one the replies between two replies
(`chatbot.evaluation.latent.interpolation`). Whether the replies make sense must be rated by people or a judge:
`xianliao-evaluate --aptness`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatbot.chat.bot import Chatbot
from chatbot.chat.variants import latent_of
from chatbot.decoding.beam import DiverseBeams
from chatbot.decoding.candidates import Draft
from chatbot.decoding.loop import run
from chatbot.errors import explain_faults
from chatbot.evaluation.intervals import ratio
from chatbot.evaluation.latent.interpolation import interpolation_report
from chatbot.evaluation.latent.picture import picture, whitened_replies
from chatbot.language.parser import Parser
from chatbot.model.latent.loss import encode, hidden, posterior_of
from chatbot.model.latent.loss import latent_of as latent_layers
from chatbot.model.latent.measures import Batch, iwae_nats, measure, reply_batches, reply_units
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.scoring import score_turns
from chatbot.storage import replacing, write_json
from chatbot.text.dialogue import DialogueError, count_units
from chatbot.text.dialogue_files import read_dialogues

CANDIDATES = 5
Method = dict[str, float]


def methods_of(bot: Chatbot) -> dict[str, list[Method]]:
    """Return the settings of the five candidates of every method.

    A method without `variation` and without `strength`, the one of diverse beams, changes the seed.
    """
    methods: dict[str, list[Method]] = {}
    for temperature in (0.5, 0.75, 1.0, 1.25):
        methods[f"temperature {temperature}"] = [{"temperature": temperature}] * CANDIDATES
    for top_p in (0.6, 0.8, 1.0):
        methods[f"top-p {top_p}"] = [{"top_p": top_p}] * CANDIDATES
    for strength in (0.5, 1.0, 2.0):
        methods[f"diverse beams {strength}"] = [{"strength": strength}] * CANDIDATES
    kind = "best of n" if latent_of(bot) is None else "latent"
    for spread in (0.5, 1.0, 1.5):
        variants: list[Method] = [{"variation": number, "spread": spread} for number in range(CANDIDATES)]
        methods[f"{kind}, spread {spread}"] = variants
    return methods


def candidates_of(bot: Chatbot, turns: Sequence[str], method: Sequence[Method], seed: int) -> list[str]:
    """Return the five candidates of a method: variants of one seed, diverse beams, or replies of five seeds."""
    if "strength" in method[0]:
        return diverse_replies(bot, turns, method[0]["strength"])
    return [
        bot.reply(turns, seed if "variation" in changes else seed + number, **changes)
        for number, changes in enumerate(method)
    ]


@torch.inference_mode()
def diverse_replies(bot: Chatbot, turns: Sequence[str], strength: float) -> list[str]:
    """Return five replies by diverse beam search, with the rules and the bound of the bot's settings."""
    request = bot.request(turns, 0)
    batch, logits = bot.read_prompt(request.prompt)
    drafts = [Draft() for _ in range(CANDIDATES)]
    earlier, speaker = request.answered.earlier_replies, request.prompt.reply_speaker
    search = DiverseBeams(request.settings, drafts, strength, earlier, speaker)
    for _ in run(batch, logits, [search], bot.vocabulary):
        pass
    return [bot.show(request, draft).text for draft in drafts]


def difference(bot: Chatbot, texts: Sequence[str]) -> float:
    """Return 1 minus the mean pairwise likeness of texts."""
    ids, ranker = [bot.tokenizer.encode(text) for text in texts], bot.ranker(bot.settings)
    return 1 - float(np.mean([ranker.likeness(a, b) for a, b in combinations(ids, 2)]))


def compare(bot: Chatbot, base: Chatbot, contexts: Sequence[Sequence[str]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return quality and difference of every method, with 95 % bootstrap intervals over the contexts.

    Args:
        bot: The bot whose candidates are compared.
        base: The bot whose model scores them.
        contexts: Histories that end with a message.
        seed: Seed of the first context; each context has a different seed.
    """
    pairs = [(base, method) for method in methods_of(base).items()]
    if latent_of(bot) is not None:
        pairs += [(bot, method) for method in methods_of(bot).items() if method[0].startswith("latent")]
    rows: dict[str, dict[str, Any]] = {}
    for speaker, (name, method) in pairs:
        nats, units, differences, firsts = [], [], [], []
        for number, turns in enumerate(contexts):
            texts = candidates_of(speaker, turns, method, seed + 1000 * number)
            before = [base.tokenizer.encode(turn) for turn in turns]
            scored = score_turns(base.model, base.layout, [[*before, base.tokenizer.encode(text)] for text in texts])
            nats.append(sum(turns[-1] for turns in scored))
            units.append(count_units(texts))
            differences.append(difference(base, texts))
            firsts.append(len({text[:1] for text in texts}))
        rows[name] = {
            "base_nats_per_unit": sum(nats) / sum(units),
            "base_nats_per_unit_interval": ratio(nats, units),
            "difference": float(np.mean(differences)),
            "difference_interval": ratio(differences),
            "distinct_first_characters": float(np.mean(firsts)),
        }
    for name, row in rows.items():
        if not name.startswith("temperature"):
            row["above_temperature"] = is_above(rows, row)
    return rows


def is_above(rows: dict[str, dict[str, Any]], row: dict[str, Any]) -> bool:
    """Whether a method's difference is above that of the temperatures at the same quality.

    The lower end of the method's interval must be above the curve through the upper ends of the temperatures'
    intervals. False if the quality of the method is beyond the ends of the curve.
    """
    curve = sorted(
        (other["base_nats_per_unit"], other["difference_interval"][1])
        for name, other in rows.items()
        if name.startswith("temperature")
    )
    nats, (quality, heights) = row["base_nats_per_unit"], np.array(curve, np.float64).T
    if not quality[0] <= nats <= quality[-1]:
        return False
    return bool(row["difference_interval"][0] > np.interp(nats, quality, heights))


@torch.inference_mode()
def latent_report(bot: Chatbot, base: Chatbot, dialogues: Sequence[Sequence[str]], samples: int = 50) -> dict[str, Any]:
    """Return the measures of a latent on the last replies of dialogues, and nats/unit of the base on the same replies."""
    model = bot.model
    assert isinstance(model, XianliaoForCausalLM)
    ids = [[bot.tokenizer.encode(turn) for turn in turns] for turns in dialogues if len(turns) > 1]
    batches = reply_batches(bot.layout, ids, model.device)
    units = reply_units(batches, lambda tokens: count_units([bot.tokenizer.decode(tokens)]))
    scored = score_turns(base.model, base.layout, ids)
    report: dict[str, Any] = asdict(measure(model, batches, units))
    report |= {
        "shuffle_cost": report["shuffled"] - report["with_z"],
        "checkpoint_before": sum(turns[-1] for turns in scored) / units,
        f"iwae_{samples}": iwae_nats(model, batches, samples) / units,
    }
    if latent_layers(model).recognition_mlp is not None:
        report |= {f"token_accuracy_{name}": value for name, value in token_accuracy(model, batches).items()}
    return report


def token_accuracy(model: XianliaoForCausalLM, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the share of reply tokens that the model ranks first, with z = the mean of q, the mean of p, and 0."""
    right, total = {"recognition": 0, "prior": 0, "none": 0}, 0
    for batch, replies in batches:
        q, p = posterior_of(model, encode(model, batch, replies))
        predicting, targets = replies.carrier >= 0, replies.labels.roll(-1, 1)
        total += int(predicting.sum())
        for name, z in (("recognition", q.mean), ("prior", p.mean), ("none", torch.zeros_like(p.mean))):
            states = hidden(model, batch, replies.spread(z))[predicting]
            best = torch.nn.functional.linear(states, *model.output_head()).argmax(-1)
            right[name] += int((best == targets[predicting]).sum())
    return {name: count / total for name, count in right.items()}


def write_report(output: Path, report: dict[str, Any]) -> None:
    """Write report.json, report.md and pareto.png; `main` adds ellipses.svg for a Gaussian latent."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "report.json", report)
    lines = [
        "# Other ways to say a reply",
        "",
        f"Contexts: {report['contexts']}; candidates for each: {CANDIDATES}.",
        "",
    ]
    lines += ["| method | base nats/unit | difference | 95 % | distinct first characters | above temperature |"]
    lines += ["|---|--:|--:|--:|--:|---|"]
    for name, row in report["methods"].items():
        low, high = row["difference_interval"]
        above = {True: "yes", False: "no", None: ""}[row.get("above_temperature")]
        lines.append(
            f"| {name} | {row['base_nats_per_unit']:.3f} | {row['difference']:.3f} | {low:.3f} to {high:.3f} |"
            f" {row['distinct_first_characters']:.2f} | {above} |"
        )
    if report["latent"]:
        lines += ["", "| measure | value |", "|---|--:|"]
        lines += [f"| {name} | {_shown(value)} |" for name, value in report["latent"].items()]
    if report["interpolation"]:
        lines += ["", "| between two replies | value |", "|---|--:|"]
        lines += [f"| {name} | {_shown(value)} |" for name, value in report["interpolation"].items()]
    lines += ["", "Not measured here: blind aptness (`xianliao-evaluate --aptness`)."]
    with replacing(output / "report.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw_pareto(output / "pareto.png", report["methods"])


def _shown(value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"{number:.3f}" if isinstance(number, float) else str(number) for number in values)


def draw_pareto(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Draw difference against nats/unit, with the intervals of both; one colour per kind of method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    kinds = dict.fromkeys(name.rpartition(" ")[0].removesuffix(", spread") for name in rows)
    for kind in kinds:
        points = sorted((row["base_nats_per_unit"], row) for name, row in rows.items() if name.startswith(kind))
        x, y = [nats for nats, _ in points], [row["difference"] for _, row in points]
        errors = np.array([[row["difference"] - row["difference_interval"][0] for _, row in points],
                           [row["difference_interval"][1] - row["difference"] for _, row in points]])  # fmt: skip
        axes.errorbar(x, y, errors, marker="o", capsize=2, label=kind)
    axes.set(xlabel="nats/unit under the base model (lower is likelier)", ylabel="difference of five candidates")
    axes.legend()
    figure.savefig(path, dpi=110)


@explain_faults
def main(argv: list[str] | None = None) -> int:
    """Write the report."""
    parser = Parser(
        prog="python -m chatbot.evaluation.variety",
        description="Report on other ways to say a reply: quality and difference.",
    )
    parser.add_argument(
        "--checkpoint", default="default", metavar="DIR", help="checkpoint folder (default: the bundled bot)"
    )
    parser.add_argument("--base", default="default", metavar="DIR", help="checkpoint that scores the candidates")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="dialogue JSONL, a folder of such files, or a prepared set"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the report")
    parser.add_argument("--contexts", type=int, default=200, help="maximum number of contexts (default: %(default)s)")
    args = parser.parse_args(argv)
    bot, base = Chatbot.from_pretrained(args.checkpoint), Chatbot.from_pretrained(args.base)
    if bot.tokenizer.to_json() != base.tokenizer.to_json():
        raise DialogueError("--checkpoint and --base have different tokenizers; give checkpoints of one family.")
    dialogues = [turns for turns in read_dialogues(args.data) if len(turns) > 1][: max(2, args.contexts)]
    if len(dialogues) < 2:
        raise DialogueError(f"{args.data} has fewer than two dialogues with a reply; give more.")
    latent, contexts = latent_of(bot), [turns[:-1] for turns in dialogues]
    is_gaussian = latent is not None and not latent.is_discrete
    report: dict[str, Any] = {
        "checkpoint": bot.name,
        "base": base.name,
        "contexts": len(dialogues),
        "methods": compare(bot, base, contexts),
        "latent": latent_report(bot, base, dialogues) if latent is not None else None,
        "interpolation": interpolation_report(bot, base, contexts) if is_gaussian else None,
    }
    write_report(Path(args.output), report)
    if is_gaussian:
        *turns, last_turn = dialogues[0]
        texts = list(dict.fromkeys([last_turn, *candidates_of(bot, turns, methods_of(bot)["latent, spread 1.0"], 0)]))
        drawn = picture(whitened_replies(bot, turns, texts), texts, turns[-1])
        with replacing(Path(args.output, "ellipses.svg")) as temporary:
            temporary.write_text(drawn, encoding="utf-8")
    print(Path(args.output, "report.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

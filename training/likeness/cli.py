"""xianliao-likeness: compare a bot, before and after training, with the person on whose chats it was trained."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from chatbot.checkpoint.location import resolve
from chatbot.errors import FileError, explain_faults
from chatbot.language.parser import Parser
from chatbot.language.translation import announce, translate
from chatbot.model.device import check_device
from chatbot.text.prepared_set import load_manifest


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="xianliao-likeness",
        description="Measure how much a bot resembles a person, on chats that it was not trained on."
        " The person must have agreed.",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="bot that was trained on the person's chats")
    add("--before", default="default", metavar="DIR", help="bot that it was trained from (default: the bundled bot)")
    add(
        "--data",
        required=True,
        metavar="DIR",
        help="prepared set of xianliao-prepare --bot; its valid split, which the bot was not trained on, is measured",
    )
    add(
        "--replies",
        type=int,
        default=60,
        metavar="N",
        help="number of replies of each bot for the statistics of style (default: %(default)s)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add("--json", action="store_true", help="print the measurements as JSON")
    return parser


@partial(explain_faults, extra="train")
def main(argv: list[str] | None = None) -> int | None:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.replies < 1:
        parser.error("--replies must be at least 1")
    check_device(args.device)
    for checkpoint in (args.checkpoint, args.before):
        resolve(checkpoint)
    if not load_manifest(args.data)["splits"]["valid"]["dialogues"]:
        raise FileError(f"{args.data} has no valid split to measure. Prepare it again with --valid-share 0.1.")
    announce(f"loading and measuring {args.before}, {args.checkpoint} …")
    from chatbot.text.dialogue_files import read_dialogues  # imports torch

    dialogues = [turns for turns in read_dialogues(Path(args.data)) if len(turns) > 1]
    if not dialogues:
        raise FileError(f"The valid split of {args.data} has no dialogue of two turns. Prepare more chats.")
    result = compare(args, dialogues)
    print(json.dumps(result, ensure_ascii=False, indent=2) if args.json else "\n".join(map(translate, _lines(result))))
    return 0


def compare(args: argparse.Namespace, dialogues: list[list[str]]) -> dict[str, Any]:
    """Return costs and style of the person and of both bots."""
    from chatbot.chat.bot import Chatbot
    from training.likeness.measure import gain, measure_costs, replies_to, style_of

    person = [turn for turns in dialogues for turn in turns[1::2]]
    costs, styles = {}, {"person": style_of(person)}
    for name, checkpoint in (("before", args.before), ("after", args.checkpoint)):
        bot = Chatbot.from_pretrained(checkpoint, args.device)
        costs[name] = measure_costs(bot, dialogues)
        styles[name] = style_of(replies_to(bot, dialogues, args.replies))
    nats = {name: dict(zip(("others", "person"), cost.per_unit(), strict=True)) for name, cost in costs.items()}
    return {
        "dialogues": len(dialogues),
        "turns": len(person),
        "nats_per_unit": nats,
        **gain(costs["before"], costs["after"]),
        "style": styles,
    }


def _lines(result: dict[str, Any]) -> list[str]:
    """Return the comparison in words and as a table."""
    from training.likeness.measure import FEW_DIALOGUES, FEW_TURNS

    before, after = result["nats_per_unit"]["before"], result["nats_per_unit"]["after"]
    low, high = result["interval"]
    is_few = result["turns"] < FEW_TURNS or result["dialogues"] < FEW_DIALOGUES
    lines = [
        f"{result['turns']} held-out turns of the person: {before['person']:.3f} -> {after['person']:.3f} nats/unit",
        f"the others' turns in the same chats: {before['others']:.3f} -> {after['others']:.3f} nats/unit",
    ]
    if is_few:
        lines.append(
            f"fewer than {FEW_TURNS} turns or {FEW_DIALOGUES} dialogues are held out: too few to say whether the bot has"
            " learnt this person; it takes more chats"
        )
    else:
        lines.append(
            f"the person's turns gained {result['more']:.3f} nats/unit more than the others'"
            f" (95 % interval {low:.3f} to {high:.3f})"
        )
        has_learnt = "The bot has learnt more of this person than of the chats in general."
        lines.append(
            has_learnt if low > 0 else "No sign that the bot has learnt this person more than the chats in general."
        )
    lines.append(f"{'':22}{translate('person'):>8}{translate('before'):>8}{translate('after'):>8}")
    for name, value in result["style"]["person"].items():
        cells = [value, result["style"]["before"][name], result["style"]["after"][name]]
        texts = [f"{cell:.1f}" if name == "characters" else f"{cell:.0%}" for cell in cells]
        lines.append(f"{translate(name):22}{texts[0]:>8}{texts[1]:>8}{texts[2]:>8}")
    return lines


if __name__ == "__main__":
    sys.exit(main(None))

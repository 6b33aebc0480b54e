"""xianliao-prepare: turn raw dialogues into a prepared set."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from chatbot.errors import explain_faults
from chatbot.language.parser import Parser
from chatbot.language.translation import translate
from data_prep.settings import FORMS, CleanSettings, PrepareSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALL_BYTES = 4 << 20
"""Inputs smaller than this are prepared in one process: starting workers would take longer."""
_MINIMUM = {
    "max_dialogues": 1,
    "processes": 1,
    "preview": 0,
    "max_characters": 1,
    "word_count": 1,
    "tokenizer_characters": 0,
}
_DEFAULT = " (default: %(default)s)"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="xianliao-prepare",
        description="Turn raw dialogues (LCCC, JSONL, ShareGPT, TSV pairs, text, chat logs) into a set for"
        " xianliao-train.",
    )
    _add_data_options(parser)
    _add_run_options(parser)
    _add_cleaning_options(parser.add_argument_group("cleaning"))
    _add_tokenizer_options(parser.add_argument_group("tokenizer"))
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    defaults = PrepareSettings()
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        metavar="PATH",
        help="files or folders in any known form, plain or compressed (.gz, .bz2, .xz, .zst); or lccc:base, lccc:large to"
        " download LCCC from the Hugging Face hub",
    )
    add(
        "--output",
        metavar="DIR",
        help="folder of the prepared set; report/report.md in it lists the removed dialogues and the reasons",
    )
    add(
        "--valid",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files for the valid split (default: a share of the input, see --valid-share)",
    )
    add(
        "--test",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files for a test split; its dialogues are removed from the other splits (default: no test split)",
    )
    add(
        "--valid-share",
        type=float,
        default=defaults.valid_share,
        metavar="SHARE",
        help="share of the dialogues for the valid split, 0 to below 1, chosen by content hash" + _DEFAULT,
    )
    add(
        "--max-dialogues",
        type=int,
        metavar="N",
        help="stop reading --input after N raw dialogues (default: read all)",
    )
    add(
        "--format",
        choices=("auto", *FORMS),
        default=defaults.form,
        help="form of the input files; auto detects it from the content" + _DEFAULT,
    )
    add(
        "--bot",
        metavar="NAME",
        help="for chats that name the speakers: teach the bot to speak like NAME, who must have agreed; every dialogue"
        " begins with a turn of another speaker",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    defaults = PrepareSettings()
    add = parser.add_argument
    add("--seed", type=int, default=defaults.seed, metavar="N", help="seed of the order of the dialogues" + _DEFAULT)
    add(
        "--processes",
        type=int,
        default=None,
        metavar="N",
        help=f"number of worker processes (default: one per core; 1 for less than {SMALL_BYTES >> 20} MB of input)",
    )
    add("--overwrite", action="store_true", help="build again and replace the prepared set in --output")
    add(
        "--preview",
        type=int,
        default=0,
        metavar="N",
        help="print the first N dialogues of the train split with their speakers" + _DEFAULT,
    )
    add("--tokens", action="store_true", help="with --preview: show the tokens; those without loss are dimmed")
    add("--json", action="store_true", help="print the whole manifest as JSON instead of a summary")


def _add_cleaning_options(group: argparse._ArgumentGroup) -> None:
    defaults = PrepareSettings()
    add = group.add_argument
    add("--list-rules", action="store_true", help="print all rules, with their defaults, and exit")
    add("--skip", nargs="+", default=[], metavar="RULE", help="rules to switch off")
    add("--also", nargs="+", default=[], metavar="RULE", help="rules to switch on that are off by default")
    add(
        "--words",
        metavar="FILE",
        help="blocked words, one per line, for the rule blocked_words (default: the list of the package)",
    )
    add(
        "--max-characters",
        type=int,
        default=defaults.clean.max_characters,
        metavar="N",
        help="remove turns longer than N characters" + _DEFAULT,
    )
    add(
        "--near-duplicates",
        choices=("off", "held-out", "all"),
        default=defaults.near_duplicates,
        help="held-out drops train dialogues that are almost equal to a held-out one; all also drops those that are almost"
        " equal to an earlier train dialogue" + _DEFAULT,
    )
    add(
        "--near-threshold",
        type=float,
        default=defaults.near_threshold,
        metavar="SIMILARITY",
        help="minimum Jaccard similarity of character trigrams for dialogues to count as almost equal, 0 to 1"
        + _DEFAULT,
    )


def _add_tokenizer_options(group: argparse._ArgumentGroup) -> None:
    defaults = PrepareSettings()
    add = group.add_argument
    add(
        "--tokenizer",
        metavar="DIR",
        help="use the tokenizer of this prepared set, checkpoint or model of the hub (default: train a new one)",
    )
    add(
        "--vocab-size",
        type=int,
        default=defaults.vocab_size,
        metavar="N",
        help="largest number of tokens of a new tokenizer" + _DEFAULT,
    )
    add(
        "--word-count",
        type=int,
        metavar="N",
        help="build a word vocabulary: characters plus words that occur at least N times (default: byte-pair encoding)",
    )
    add(
        "--tokenizer-characters",
        type=int,
        default=defaults.tokenizer_characters,
        metavar="N",
        help="train a new tokenizer on a random sample of N characters; 0 uses all text" + _DEFAULT,
    )


@partial(explain_faults, extra="prepare")
def main(argv: list[str] | None = None) -> int | None:
    """Run the command.

    Args:
        argv: Command line without the program; None takes that of the process.

    Returns:
        Exit code.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list_rules:
        print(_list_of_rules())
        return 0
    if faults := _find_faults(args):
        parser.error("; ".join(faults))
    if args.input is not None:
        manifest = _build(args)
        print(json.dumps(manifest, ensure_ascii=False, indent=2) if args.json else _summary(args.output, manifest))
    if args.preview:
        from data_prep.preview import preview

        print(preview(args.output, args.preview, tokens=args.tokens))
    return 0


def _find_faults(args: argparse.Namespace) -> list[str]:
    """Return a message for every option that is missing or has an impossible value."""
    faults = []
    if args.output is None:
        faults.append("--output is missing")
    if args.input is None and not args.preview:
        faults.append("--input is missing (or give --preview N to look at an existing set)")
    if args.tokens and not args.preview:
        faults.append("--tokens needs --preview N")
    if not 0 <= args.valid_share < 1:
        faults.append(f"--valid-share must be at least 0 and below 1, not {args.valid_share}")
    if not 0 < args.near_threshold <= 1:
        faults.append(f"--near-threshold must be above 0 and at most 1, not {args.near_threshold}")
    for name, minimum in _MINIMUM.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            faults.append(f"--{name.replace('_', '-')} must be at least {minimum}, not {value}")
    return faults + _unknown_rules([*args.skip, *args.also])


def _unknown_rules(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    from difflib import get_close_matches

    from data_prep.pipeline import all_rules

    known = [rule.name for rule in all_rules()]
    faults = []
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            faults.append(f"unknown rule {name}" + (f", did you mean {near[0]}?" if near else " (see --list-rules)"))
    return faults


def _build(args: argparse.Namespace) -> dict[str, Any]:
    from data_prep.pipeline import build
    from data_prep.reading.hub import fetch

    paths: dict[str, list[str]] = {"train": [], "valid": [*args.valid], "test": [*args.test]}
    for name in args.input:
        if name.startswith("lccc:"):
            for split, path in fetch(name).items():
                paths[split].append(str(path))
        else:
            paths["train"].append(name)
    settings = PrepareSettings(
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        word_count=args.word_count,
        tokenizer_characters=args.tokenizer_characters or None,
        valid_share=args.valid_share,
        max_dialogues=args.max_dialogues,
        form=args.format,
        bot=args.bot,
        seed=args.seed,
        near_duplicates=args.near_duplicates,
        near_threshold=args.near_threshold,
        clean=CleanSettings(tuple(args.skip), tuple(args.also), args.words, args.max_characters),
    )
    processes = args.processes or _default_processes(paths["train"])
    return build(paths["train"], args.output, settings, args.overwrite, processes, paths["valid"], paths["test"])


def _default_processes(inputs: Sequence[str]) -> int:
    """Return the number of cores that this process may use, or 1 for small inputs."""
    from data_prep.reading.files import list_files

    if sum(path.stat().st_size for path in list_files(inputs)) < SMALL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _list_of_rules() -> str:
    from data_prep.pipeline import all_rules

    return "\n".join(
        f"{rule.name:20} {'on ' if rule.is_on else 'off'}  {translate(rule.summary)}" for rule in all_rules()
    )


def _summary(output: str, manifest: dict[str, Any]) -> str:
    counts = manifest["dialogues"]
    lines = [
        f"{output}: {counts['read']} dialogues read, {counts['kept_whole']} kept whole, {counts['split']} split,"
        f" {counts['dropped']} dropped; vocabulary of {manifest['vocab_size']}"
    ]
    for name, split in manifest["splits"].items():
        per_unit = split["tokens"] / max(split["units"], 1)
        lines.append(
            f"  {name}: {split['dialogues']} dialogues, {split['turns']} turns, {split['tokens']} tokens,"
            f" {split['units']} units ({per_unit:.2f} tokens per unit)"
        )
    lines += [f"  dropped {count}: {reason}" for reason, count in manifest["dropped"].items()]
    lines.append(f"  removed turns and dialogues, with reasons: {output}/report/report.md")
    return "\n".join(map(translate, lines))


if __name__ == "__main__":
    sys.exit(main())

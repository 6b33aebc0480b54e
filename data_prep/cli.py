"""xianliao-prepare: raw dialogues to a prepared set."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial

from chatbot.errors import explain_faults

FORMS = ("array", "jsonl", "tsv", "text", "chatlog")  # those of data_prep.reading.formats, which is slower to import


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xianliao-prepare",
        description="Turn raw dialogues (LCCC, JSONL, ShareGPT, TSV pairs, text, chat logs) into a set for xianliao-train.",
    )
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        metavar="PATH",
        help="files or folders, plain, .gz, .xz or .zst, of any form; or lccc:base, lccc:large from the Hugging Face hub",
    )
    add("--output", metavar="DIR", help="the prepared set; report/report.md in it says what happened")
    add(
        "--valid",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files for the valid split, instead of a share of the input",
    )
    add("--test", nargs="+", default=[], metavar="PATH", help="files for a test split; what is in it is nowhere else")
    add("--valid-share", type=float, default=0.05, help="share held out, by content hash (default %(default)s)")
    add("--max-dialogues", type=int, metavar="N", help="stop reading --input after N dialogues (default: read all)")
    add("--format", choices=("auto", *FORMS), default="auto", help="form of the input files")
    add("--seed", type=int, default=0, help="of the order of the dialogues (default %(default)s)")
    add(
        "--processes",
        type=int,
        default=None,
        metavar="N",
        help="how many work (default: one a core, 1 for small inputs)",
    )
    add("--overwrite", action="store_true", help="build anew and replace the prepared set in --output")
    add("--preview", type=int, default=0, metavar="N", help="print N samples with speakers and loss-carrying tokens")
    add("--json", action="store_true", help="print the whole manifest instead of a summary")

    add = parser.add_argument_group("cleaning").add_argument
    add("--list-rules", action="store_true", help="print the rules and whether they are on")
    add("--skip", nargs="+", default=[], metavar="RULE", help="rules not to apply")
    add("--also", nargs="+", default=[], metavar="RULE", help="rules to apply that are off by default")
    add("--words", metavar="FILE", help="blocked words, one a line, instead of the list that comes with the program")
    add("--max-characters", type=int, default=512, metavar="N", help="longest turn (default %(default)s)")
    add(
        "--near-duplicates",
        choices=("off", "held-out", "all"),
        default="off",
        help="drop dialogues that are almost equal",
    )
    add(
        "--near-threshold",
        type=float,
        default=0.8,
        help="similarity that is almost equal, 0 to 1 (default %(default)s)",
    )

    add = parser.add_argument_group("tokenizer").add_argument
    add("--tokenizer", metavar="DIR", help="take the tokenizer of this prepared set or checkpoint (default: train one)")
    add("--vocab-size", type=int, default=4096, help="most ids of a new tokenizer (default %(default)s)")
    add(
        "--word-count",
        type=int,
        metavar="N",
        help="its tokens are characters and words seen N times (default: merged pairs)",
    )
    add(
        "--tokenizer-characters",
        type=int,
        default=4_000_000,
        metavar="N",
        help="train it on a random sample of N characters, 0 is all (default %(default)s)",
    )
    return parser


@partial(explain_faults, extra="prepare")
def main(argv: list[str] | None = None) -> int | None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list_rules:
        return _list_rules()
    _check(parser, args)
    if args.input is not None:
        manifest = _build(parser, args)
        print(json.dumps(manifest, ensure_ascii=False, indent=2) if args.json else _summary(args.output, manifest))
    if args.preview:
        from data_prep.preview import preview

        print(preview(args.output, args.preview))
    return 0


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """All that is wrong with the settings, said at once."""
    faults = []
    if args.output is None:
        faults.append("--output is needed")
    if args.input is None and not args.preview:
        faults.append("--input is needed (or --preview N to look at an existing set)")
    if not 0 <= args.valid_share < 1:
        faults.append("--valid-share must be at least 0 and below 1")
    if not 0 < args.near_threshold <= 1:
        faults.append("--near-threshold must be above 0 and at most 1")
    for name, least in (
        ("max_dialogues", 1),
        ("processes", 1),
        ("preview", 0),
        ("max_characters", 1),
        ("word_count", 1),
        ("tokenizer_characters", 0),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            faults.append(f"--{name.replace('_', '-')} must be at least {least}")
    if args.skip or args.also:
        faults += _unknown_rules([*args.skip, *args.also])
    if faults:
        parser.error("; ".join(faults))


def _unknown_rules(names: list[str]) -> list[str]:
    from difflib import get_close_matches

    from data_prep.pipeline import all_rules

    known = [rule.name for rule in all_rules()]
    near = {name: get_close_matches(name, known, 1) for name in names if name not in known}
    return [
        f"there is no rule {name}" + (f", did you mean {found[0]}" if found else " (--list-rules shows them)")
        for name, found in near.items()
    ]


def _build(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict:
    from data_prep.pipeline import build
    from data_prep.reading.files import list_files
    from data_prep.reading.hub import fetch
    from data_prep.settings import CleanSettings, PrepareSettings

    paths = {"train": [], "valid": [*args.valid], "test": [*args.test]}
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
        seed=args.seed,
        near_duplicates=args.near_duplicates,
        near_threshold=args.near_threshold,
        clean=CleanSettings(tuple(args.skip), tuple(args.also), args.words, args.max_characters),
    )
    processes = args.processes
    if processes is None:
        is_small = sum(path.stat().st_size for path in list_files(paths["train"])) < 4 << 20
        processes = (
            1 if is_small else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
    return build(paths["train"], args.output, settings, args.overwrite, processes, paths["valid"], paths["test"])


def _list_rules() -> int:
    from data_prep.pipeline import all_rules

    for rule in all_rules():
        print(f"{rule.name:20} {'on ' if rule.is_on else 'off'}  {rule.says}")
    return 0


def _summary(output: str, manifest: dict) -> str:
    counts = manifest["dialogues"]
    lines = [
        f"{output}: {counts['read']} dialogues read, {counts['kept_whole']} kept whole, {counts['split']} split,"
        f" {counts['dropped']} dropped; vocabulary {manifest['vocab_size']}"
    ]
    for name, split in manifest["splits"].items():
        per_unit = split["tokens"] / max(split["units"], 1)
        lines.append(
            f"  {name}: {split['dialogues']} dialogues, {split['turns']} turns, {split['tokens']} tokens,"
            f" {split['units']} units ({per_unit:.2f} tokens a unit)"
        )
    lines += [f"  dropped {count}: {reason}" for reason, count in manifest["dropped"].items()]
    lines.append(f"  what went, and why: {output}/report/report.md")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

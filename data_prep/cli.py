"""xianliao-prepare: raw dialogues to a prepared set."""

from __future__ import annotations

import argparse
import json
import sys

from chatbot.errors import explain_faults
from data_prep.sources import FORMS


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xianliao-prepare",
        description="Turn raw dialogues (LCCC, JSONL, TSV pairs, text) into a prepared set for xianliao-train.",
    )
    add = parser.add_argument
    add("--input", nargs="+", metavar="PATH", help="files or folders, plain, .gz or .xz; the form is recognised")
    add("--output", required=True, metavar="DIR", help="the prepared set")
    add("--tokenizer", metavar="DIR", help="take the tokenizer of this prepared set or checkpoint (default: train one)")
    add("--vocab-size", type=int, default=8192, help="most ids of a new tokenizer (default %(default)s)")
    add("--valid-share", type=float, default=0.05, help="share held out, by content hash (default %(default)s)")
    add("--max-dialogues", type=int, metavar="N", help="stop reading after N dialogues (default: read all)")
    add("--format", choices=("auto", *FORMS), default="auto", help="form of the input files")
    add("--overwrite", action="store_true", help="build anew and replace the prepared set in --output")
    add("--preview", type=int, default=0, metavar="N", help="print N samples with speakers and loss-carrying tokens")
    add("--json", action="store_true", help="print the whole manifest instead of a summary")
    return parser


@explain_faults
def main(argv: list[str] | None = None) -> int | None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.valid_share < 1:
        parser.error("--valid-share must be at least 0 and below 1")
    if args.max_dialogues is not None and args.max_dialogues < 1:
        parser.error("--max-dialogues must be at least 1")
    if args.preview < 0:
        parser.error("--preview must be at least 0")
    if args.input is None and not args.preview:
        parser.error("--input is needed (or --preview N to look at an existing set)")
    if args.input is not None:
        from data_prep.build import PrepareSettings, build

        settings = PrepareSettings(args.tokenizer, args.vocab_size, args.valid_share, args.max_dialogues, args.format)
        manifest = build(args.input, args.output, settings, args.overwrite)
        print(json.dumps(manifest, ensure_ascii=False, indent=2) if args.json else _summary(args.output, manifest))
    if args.preview:
        from data_prep.preview import preview

        print(preview(args.output, args.preview))
    return 0


def _summary(output: str, manifest: dict) -> str:
    lines = [f"{output}: {manifest['read']} dialogues read, vocabulary {manifest['vocab_size']}"]
    for name, split in manifest["splits"].items():
        per_unit = split["tokens"] / max(split["units"], 1)
        lines.append(
            f"  {name}: {split['dialogues']} dialogues, {split['turns']} turns, {split['tokens']} tokens,"
            f" {split['units']} units ({per_unit:.2f} tokens a unit)"
        )
    lines += [f"  dropped {count}: {reason}" for reason, count in manifest["dropped"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

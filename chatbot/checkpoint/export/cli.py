"""The command xianliao-export."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from chatbot.errors import CheckpointError, explain_faults
from chatbot.language.parser import Parser
from chatbot.language.translation import announce

FORMATS = {
    "html": ("html", "export_html"),
    "lite": ("lite", "export_lite"),
    "hf": ("hf", "export_hf"),
    "onnx": ("onnx_graph", "export_onnx"),
}
"""For each format the module of this folder and its function: `export(folder, path)` takes a checkpoint folder
and the output path. Modules are imported when they are needed, so that --help answers at once. The help of `--to` describes
the formats."""


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser of xianliao-export."""
    parser = Parser(prog="xianliao-export", description="Write a checkpoint in the format of another program.")
    parser.add_argument("checkpoint", help="checkpoint folder, or `default` for the bundled bot")
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMATS,
        help="format to write: html, one page with model and decoder inside, which opens offline; lite, the weights file of"
        " the package xianliao-lite, which needs neither torch nor transformers; hf, a folder that transformers loads"
        " without xianliao; onnx, a folder with graphs for onnxruntime, in float32 and int8",
    )
    parser.add_argument("--output", required=True, metavar="PATH", help="new file or folder; it must not exist yet")
    return parser


@partial(explain_faults, extra="export")
def main(argv: list[str] | None = None) -> int | None:
    """Run xianliao-export."""
    args = build_parser().parse_args(argv)
    output = Path(args.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CheckpointError(f"{output} exists already. Give another --output.")
    from chatbot.checkpoint.location import resolve

    folder = resolve(args.checkpoint)
    announce(f"loading {args.checkpoint} …")
    module, function = FORMATS[args.to]
    getattr(import_module(f"chatbot.checkpoint.export.{module}"), function)(folder, output)
    files = sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output]
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(None))

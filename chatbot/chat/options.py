"""Options of the commands that load a model or talk to people."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import get_args

from chatbot.decoding.settings import MAX_STORED_LIMIT_TOKENS, OPTIONS, ReplySettings, Script, Thinking
from chatbot.errors import CheckpointError

MIN_HISTORY_TOKENS, MAX_HISTORY_TOKENS = 64, 8192
"""Range of the maximum length of the history that a person can choose."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that loads a model."""
    parser.add_argument(
        "--checkpoint",
        default="default",
        metavar="DIR|OWNER/NAME",
        help="checkpoint folder, or model of the Hugging Face hub, which is downloaded once (default: the bundled bot)",
    )
    parser.add_argument(
        "--revision",
        metavar="NAME",
        help="branch, tag or commit of the model of the hub; main asks for the newest (default: the commit that was"
        " downloaded first)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument(
        "--dtype", default="auto", help="auto, float32, float16, bfloat16 or int8 (default: %(default)s)"
    )


def check_model_options(args: argparse.Namespace, *others: str) -> None:
    """Check the options of `add_model_options`, and further checkpoints, before torch is imported.

    The revision is added to `args.checkpoint`, and models of the hub are downloaded.

    Raises:
        CheckpointError, XianliaoError: A checkpoint, the device or the dtype cannot be used.
    """
    from chatbot.checkpoint.hub import with_revision
    from chatbot.checkpoint.location import resolve
    from chatbot.model.device import check_device

    several = not isinstance(args.checkpoint, str)
    if several and len(args.checkpoint) > 1 and args.revision is not None:
        raise CheckpointError("--revision is for one checkpoint. With several, write OWNER/NAME@REVISION.")
    names = args.checkpoint if several else [args.checkpoint]
    names = [with_revision(name, args.revision) for name in names]
    args.checkpoint = names if several else names[0]
    for checkpoint in (*names, *others):
        resolve(checkpoint)
    check_device(args.device, args.dtype)


def add_safety_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for the safety files to the commands that talk to people."""
    parser.add_argument(
        "--safety",
        default="default",
        metavar="DIR|off",
        help="folder of fixed replies to people in crisis and of word lists (default: the bundled one,"
        " chatbot/safety/files); off: no fixed replies, the model answers people in crisis as well",
    )


def add_thinking_option(parser: argparse._ActionsContainer) -> None:
    """Add the option for thinking blocks to the commands that talk to people."""
    help_text = next(field for field in fields(ReplySettings) if field.name == "thinking").metadata["help"]
    parser.add_argument("--thinking", choices=get_args(Thinking), help=help_text)


def add_length_options(parser: argparse._ActionsContainer) -> None:
    """Add the options for the lengths of histories and thinking blocks, and for the batch, to the server's command."""
    parser.add_argument(
        "--context-tokens",
        type=int,
        metavar="N",
        help="longest history that a model reads, in tokens, and the longest reply that a request to a chat model may ask"
        f" for, {MIN_HISTORY_TOKENS} to {MAX_HISTORY_TOKENS}; each model limits it further, a chat model to half of its"
        " positions (default: the model's, 1024 for chat models); memory grows with it",
    )
    help_text = next(option for option in OPTIONS if option.name == "thinking_tokens").help
    parser.add_argument(
        "--thinking-tokens", type=int, metavar="N", help=f"{help_text} (default: the checkpoint's, else 512)"
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        default=64,
        metavar="N",
        help="replies of a checkpoint that are decoded together, 1 to 64; with 1, no reply depends on other requests in bf16"
        " either, and the others wait (default: %(default)s)",
    )


def check_length_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with code 2 if an option of `add_length_options` is out of range."""
    ranges = {
        "context_tokens": (MIN_HISTORY_TOKENS, MAX_HISTORY_TOKENS),
        "thinking_tokens": (1, MAX_STORED_LIMIT_TOKENS),
        "max_rows": (1, 64),
    }
    for name, (least, most) in ranges.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name.replace('_', '-')} must be from {least} to {most}, got {value}")


def add_script_option(parser: argparse._ActionsContainer) -> None:
    """Add the option for traditional characters to the commands that talk to people."""
    help_text = next(field for field in fields(ReplySettings) if field.name == "script").metadata["help"]
    parser.add_argument("--script", choices=get_args(Script), help=help_text)

"""The weighted mean of checkpoints that were fine-tuned from the same one: they err in different places.

Model soups, Wortsman et al. 2022 (arXiv:2203.05482). Checkpoints without a common ancestor have nothing to do with each
other, and their mean is noise.

    python -m training.average_checkpoints runs/mean 0.6 runs/first 0.4 runs/second
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from chatbot.checkpoint.folder import GENERATION, TRAINING, load_model, resolve, save
from chatbot.errors import CheckpointError, explain_faults
from chatbot.storage import read_json
from chatbot.text.tokenizer import TOKENIZER_FILE, DialogueTokenizer


@torch.no_grad()
def soup(target: str | Path, sources: Sequence[tuple[float, str | Path]]) -> None:
    """Writes sum_i share_i weights_i / sum_i share_i to `target`; settings and tokenizer are those of the first.

    Args:
        target: Checkpoint folder to write.
        sources: (share, checkpoint folder), shares above 0.

    Raises:
        CheckpointError: They differ in shape or vocabulary, or a share is not above 0.
    """
    if not sources or any(share <= 0 for share, _ in sources):
        raise CheckpointError("Give one checkpoint or more, each with a share above 0.")
    paths = [resolve(source) for _, source in sources]
    whole = sum(share for share, _ in sources)
    tokenizer, mean, total = DialogueTokenizer.load(paths[0]), load_model(paths[0]), {}
    for (share, _), path in zip(sources, paths, strict=True):
        weights = load_model(path).state_dict()
        same = {name: t.shape for name, t in weights.items()} == {n: t.shape for n, t in mean.state_dict().items()}
        if not same or (path / TOKENIZER_FILE).read_bytes() != (paths[0] / TOKENIZER_FILE).read_bytes():
            raise CheckpointError(f"{path} has another shape or vocabulary than {paths[0]}; they cannot be averaged.")
        for name, tensor in weights.items():
            total[name] = total.get(name, 0) + share / whole * tensor
    mean.load_state_dict(total)
    record = [
        {"share": share / whole, **read_json(path / TRAINING)} for (share, _), path in zip(sources, paths, strict=True)
    ]
    data = {part["folder"]: part for each in record for part in each.get("data", [])}
    training = {"data": list(data.values()), "mean_of": without_repeats(record)}
    save(target, mean, tokenizer, read_json(paths[0] / GENERATION), training)


def without_repeats(records: list[dict]) -> list[dict]:
    """The training records of checkpoints with each ancestor told once: later mentions are `same_as` its `id`."""
    told = set()

    def shorten(part: object) -> object:
        if isinstance(part, list):
            return [shorten(each) for each in part]
        if not isinstance(part, dict):
            return part
        if not part.keys() & {"settings", "mean_of"}:  # no record of a checkpoint
            return {name: shorten(value) for name, value in part.items()}
        share = {"share": part["share"]} if "share" in part else {}
        rest = {name: value for name, value in part.items() if name not in ("share", "id")}
        name = part.get("id") or hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]
        if name in told:
            return {**share, "same_as": name}
        told.add(name)
        return {**share, "id": name, **{key: shorten(value) for key, value in rest.items()}}

    return shorten(records)


@partial(explain_faults, extra="train")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.average_checkpoints", description=__doc__.splitlines()[0])
    parser.add_argument("target", help="folder to write")
    parser.add_argument("sources", nargs="+", metavar="SHARE CHECKPOINT", help="shares and checkpoint folders in turn")
    args = parser.parse_args(argv)
    try:
        shares = [float(share) for share in args.sources[::2]]
    except ValueError as error:
        parser.error(f"{error}: give shares and folders in turn, 0.6 runs/first 0.4 runs/second.")
    if len(shares) != len(args.sources[1::2]):
        parser.error("Give a share and a folder for each checkpoint, 0.6 runs/first 0.4 runs/second.")
    soup(args.target, list(zip(shares, args.sources[1::2], strict=True)))


if __name__ == "__main__":
    sys.exit(main())

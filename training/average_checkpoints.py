"""Weighted mean of checkpoints that were fine-tuned from the same one.

Model soups, Wortsman et al. 2022 (arXiv:2203.05482): the errors of such checkpoints partly cancel. The mean of
checkpoints without a common ancestor is useless.

    python -m training.average_checkpoints runs/mean 0.6 runs/first 0.4 runs/second
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chatbot.checkpoint.folder import GENERATION, TRAINING, load_model, resolve, save
from chatbot.errors import CheckpointError, explain_faults
from chatbot.language.parser import Parser
from chatbot.storage import read_json
from chatbot.text.tokenizer import TOKENIZER_FILE, DialogueTokenizer


@torch.no_grad()
def average(target: str | Path, sources: Sequence[tuple[float, str | Path]]) -> None:
    """Write a checkpoint with the weights sum_i share_i weights_i / sum_i share_i.

    Config, tokenizer and decoder settings are those of the first checkpoint.

    Args:
        target: Checkpoint folder to write.
        sources: (share, checkpoint folder); shares are above 0.

    Raises:
        CheckpointError: The checkpoints differ in shape or vocabulary, or a share is not above 0.
    """
    if not sources or any(share <= 0 for share, _ in sources):
        raise CheckpointError("Give at least one checkpoint, each with a share above 0.")
    paths = [resolve(source) for _, source in sources]
    whole = sum(share for share, _ in sources)
    tokenizer, mean = DialogueTokenizer.load(paths[0]), load_model(paths[0])
    total: dict[str, torch.Tensor] = {}
    for (share, _), path in zip(sources, paths, strict=True):
        weights = load_model(path).state_dict()
        same = {name: t.shape for name, t in weights.items()} == {n: t.shape for n, t in mean.state_dict().items()}
        if not same or (path / TOKENIZER_FILE).read_bytes() != (paths[0] / TOKENIZER_FILE).read_bytes():
            raise CheckpointError(f"Cannot average {path} and {paths[0]}: their shapes or vocabularies differ.")
        for name, tensor in weights.items():
            weighted = share / whole * tensor
            total[name] = total[name] + weighted if name in total else weighted
    mean.load_state_dict(total)
    record = [
        {"share": share / whole, **read_json(path / TRAINING)} for (share, _), path in zip(sources, paths, strict=True)
    ]
    data = {part["folder"]: part for ancestor in record for part in ancestor.get("data", [])}
    training = {"data": list(data.values()), "mean_of": without_repeats(record)}
    save(target, mean, tokenizer, read_json(paths[0] / GENERATION), training)


def without_repeats(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return checkpoint histories with each ancestor written out once; repetitions become `{"same_as": id}`."""
    written: set[str] = set()

    def shorten(part: Any) -> Any:
        if isinstance(part, list):
            return [shorten(item) for item in part]
        if not isinstance(part, dict):
            return part
        if not part.keys() & {"settings", "mean_of"}:  # not the record of a checkpoint
            return {name: shorten(value) for name, value in part.items()}
        share = {"share": part["share"]} if "share" in part else {}
        rest = {name: value for name, value in part.items() if name not in ("share", "id")}
        name = part.get("id") or hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]
        if name in written:
            return {**share, "same_as": name}
        written.add(name)
        return {**share, "id": name, **{key: shorten(value) for key, value in rest.items()}}

    return shorten(records)


@partial(explain_faults, extra="train")
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m training.average_checkpoints", description="Average checkpoints of one ancestor.")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("sources", nargs="+", metavar="SHARE CHECKPOINT", help="share and folder of each checkpoint")
    args = parser.parse_args(argv)
    try:
        shares = [float(share) for share in args.sources[::2]]
    except ValueError as error:
        parser.error(f"{error}: give a share and a folder for each checkpoint, like 0.6 runs/first 0.4 runs/second.")
    if len(shares) != len(args.sources[1::2]):
        parser.error("Give a share and a folder for each checkpoint, like 0.6 runs/first 0.4 runs/second.")
    average(args.target, list(zip(shares, args.sources[1::2], strict=True)))


if __name__ == "__main__":
    sys.exit(main(None))

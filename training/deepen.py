"""A deeper checkpoint that computes the same function as a smaller one, so that its training starts from what the
smaller one has learnt.

Copies of blocks are inserted whose projections into the residual stream are zero, so each copy adds nothing until it is
trained (LLaMA Pro, Wu et al. 2024, arXiv:2401.02415; zero-initialised residual branches: Fixup, arXiv:1901.09321).

    python -m training.deepen runs/deeper default --layers 12
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from chatbot.checkpoint.folder import GENERATION, TRAINING, load_model, resolve, save
from chatbot.errors import CheckpointError, explain_faults
from chatbot.language.parser import Parser
from chatbot.model.attention.mixer import ResidualProjection
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json
from chatbot.text.tokenizer import DialogueTokenizer


@torch.no_grad()
def deepen(target: str | Path, source: str | Path, layers: int) -> None:
    """Write a checkpoint of `layers` blocks that gives the same logits as `source`.

    The pattern of layer types continues: blocks are inserted by whole repetitions of the pattern, evenly over the depth.

    Args:
        target: Checkpoint folder to write.
        source: Checkpoint of this project.
        layers: Number of blocks of the new checkpoint.

    Raises:
        CheckpointError: The source is another kind of model, or the number of layers does not continue its pattern.
    """
    path = resolve(source)
    model = load_model(path)
    if not isinstance(model, XianliaoForCausalLM):
        raise CheckpointError(f"{path} is not a model of this project, so it cannot be deepened.")
    if model.latent is not None:
        raise CheckpointError(
            f"{path} has a latent variable of the reply, so it cannot be deepened. Deepen a checkpoint before"
            " you train the variable."
        )
    types = list(model.config.layer_types)
    period = next(p for p in range(1, len(types) + 1) if types == (types[:p] * len(types))[: len(types)])
    added, incomplete = divmod(layers - len(types), period)
    if added < 1 or incomplete or len(types) % period:
        raise CheckpointError(
            f"--layers must be above {len(types)} by a multiple of {period}, so that the layer types"
            f" ({', '.join(types[:period])}) repeat; got {layers}."
        )
    plan = _plan(len(types) // period, added)
    origins = [(group * period + i, is_copy) for group, is_copy in plan for i in range(period)]
    config = type(model.config).from_dict(
        {**model.config.to_dict(), "num_hidden_layers": layers, "layer_types": [types[i] for i, _ in origins]}
    )
    deeper = XianliaoForCausalLM(config)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("blocks.")}
    for index, (origin, _) in enumerate(origins):
        for name, tensor in model.blocks[origin].state_dict().items():
            weights[f"blocks.{index}.{name}"] = tensor.clone()
    deeper.load_state_dict(weights)
    for block, (_, is_copy) in zip(deeper.blocks, origins, strict=True):
        for module in block.modules():
            if is_copy and isinstance(module, ResidualProjection):
                module.weight.zero_()
                if module.bias is not None:
                    module.bias.zero_()
    tokenizer = DialogueTokenizer.load(path)
    save(target, deeper, tokenizer, read_json(path / GENERATION), {**read_json(path / TRAINING), "deepened_to": layers})


def _plan(groups: int, added: int) -> list[tuple[int, bool]]:
    """Return the new model's groups: (group of the source, whether it is a copy), with copies spread evenly."""
    plan: list[tuple[int, bool]] = []
    for group in range(groups):
        copies = (group + 1) * added // groups - group * added // groups
        plan += [(group, False), *[(group, True)] * copies]
    return plan


@partial(explain_faults, extra="train")
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m training.deepen", description="Write a deeper checkpoint that gives the same logits."
    )
    parser.add_argument("target", help="folder to write")
    parser.add_argument("source", help="checkpoint folder, or default for the bundled bot")
    parser.add_argument("--layers", type=int, required=True, help="number of layers of the new checkpoint")
    args = parser.parse_args(argv)
    deepen(args.target, args.source, args.layers)


if __name__ == "__main__":
    sys.exit(main(None))

"""Convert checkpoints: copy, store as int8, import GPT-2, merge LoRA adapters."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from chatbot.checkpoint.folder import (
    BACKWARD,
    GENERATION,
    PICKLED,
    TRAINING,
    WEIGHTS,
    import_gpt2,
    is_chat_model,
    is_foreign,
    load_model,
    resolve,
    save,
)
from chatbot.checkpoint.location import locate
from chatbot.errors import CheckpointError, explain_faults
from chatbot.model.layer_types import LAYER_TYPES
from chatbot.similarity.token_vectors import VECTORS_FILE
from chatbot.storage import read_json
from chatbot.text.tokenizer import DialogueTokenizer


def copy(source: str | Path, target: str | Path, int8: bool = False, layer_types: Sequence[str] = ("softmax",)) -> None:
    """Copies a checkpoint or a GPT-2 folder into our form, or a LoRA adapter into a chat model that needs no other.

    Args:
        source: A checkpoint folder, `default`, a GPT-2 folder, or one of a chat model or of an adapter to it.
        target: A new or empty folder.
        int8: Store matrices as int8.
        layer_types: Mixers of an imported model.

    Raises:
        CheckpointError, ImportedModelError, TokenizerError: What is wrong with the source or the target.
    """
    if Path(target).exists() and (not Path(target).is_dir() or any(Path(target).iterdir())):
        raise CheckpointError(f"{target} exists and is not empty; give another folder.")
    path = locate(source)
    pickled = (path / PICKLED).is_file() and not (path / WEIGHTS).is_file()
    if not pickled:
        path = resolve(source)
    if not pickled and is_chat_model(path):
        if int8:
            raise CheckpointError(
                f"{path} holds a chat model of another project, which has no int8 form; leave it out."
            )
        model = load_model(path)
        generation, training = (read_json(p) if p.is_file() else {} for p in (path / GENERATION, path / TRAINING))
        training = training or {"imported_from": path.name}
    elif is_foreign(path):
        model = import_gpt2(path, layer_types, pickled)
        generation, training = {}, {"imported_from": path.name, "mixers": list(layer_types)}
    else:
        model, generation, training = load_model(path), read_json(path / GENERATION), read_json(path / TRAINING)
    if int8:
        training["weight_storage"] = "int8; the metrics are of the float weights"
    save(target, model, DialogueTokenizer.load(path), generation, training, int8=int8)
    for name in ("README.md", VECTORS_FILE):
        if (path / name).is_file():
            shutil.copy(path / name, Path(target) / name)
    if (path / BACKWARD).is_dir():
        copy(path / BACKWARD, Path(target) / BACKWARD, int8)


@explain_faults
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m chatbot.checkpoint", description=copy.__doc__.splitlines()[0])
    parser.add_argument(
        "source", help="checkpoint folder, `default`, a transformers GPT-2 or chat model folder, or a LoRA adapter's"
    )
    parser.add_argument("target", help="new folder")
    parser.add_argument("--int8", action="store_true", help="int8 matrices with a scale per row")
    parser.add_argument(
        "--layer_types",
        nargs="+",
        choices=LAYER_TYPES,
        default=["softmax"],
        metavar="MIXER",
        help="mixers of an imported GPT-2, repeated over its layers; softmax computes what it computed",
    )
    args = parser.parse_args(argv)
    copy(args.source, args.target, args.int8, args.layer_types)
    print(f"{args.target}: {(Path(args.target) / WEIGHTS).stat().st_size / 1e6:.1f} MB of weights")

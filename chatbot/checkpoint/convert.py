"""Conversion of checkpoints: copy, store as int8, import GPT-2, merge LoRA adapters."""

from __future__ import annotations

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
from chatbot.language.parser import Parser
from chatbot.language.translation import translate
from chatbot.model.layer_types import LAYER_TYPES
from chatbot.similarity.token_vectors import VECTORS_FILE
from chatbot.storage import read_json
from chatbot.text.tokenizer import DialogueTokenizer


def copy(source: str | Path, target: str | Path, int8: bool = False, layer_types: Sequence[str] = ("softmax",)) -> None:
    """Copy a checkpoint into a new folder and convert it.

    A GPT-2 folder becomes a checkpoint of this project. A LoRA adapter is merged into its base model, so the new folder
    needs no other.

    Args:
        source: A checkpoint folder, `default`, a GPT-2 folder, a chat model's folder or a LoRA adapter's folder.
        target: A new or empty folder.
        int8: Store matrices as int8.
        layer_types: Mixers of an imported GPT-2.

    Raises:
        CheckpointError, ImportedModelError, TokenizerError: The source cannot be read, or the target is not empty.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not empty. Give another folder.")
    path = locate(source)
    is_pickled = (path / PICKLED).is_file() and not (path / WEIGHTS).is_file()
    if not is_pickled:
        path = resolve(source)
    if not is_pickled and is_chat_model(path):
        if int8:
            raise CheckpointError(f"{path} holds a chat model of another project, which has no int8 form. Omit --int8.")
        model = load_model(path)
        generation = _read_if_there(path / GENERATION)
        training = _read_if_there(path / TRAINING) or {"imported_from": path.name}
    elif is_foreign(path):
        model = import_gpt2(path, layer_types, is_pickled)
        generation, training = {}, {"imported_from": path.name, "mixers": list(layer_types)}
    else:
        model, generation, training = load_model(path), read_json(path / GENERATION), read_json(path / TRAINING)
    if int8:
        training["weight_storage"] = "int8; the metrics are of the float weights"
    save(target, model, DialogueTokenizer.load(path), generation, training, int8=int8)
    for name in ("README.md", "README.zh.md", VECTORS_FILE):
        if (path / name).is_file():
            shutil.copy(path / name, target / name)
    if (path / BACKWARD).is_dir():
        copy(path / BACKWARD, target / BACKWARD, int8)


def _read_if_there(path: Path) -> dict:
    """Return the content of a JSON file, or an empty dict if the file does not exist."""
    return read_json(path) if path.is_file() else {}


@explain_faults
def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="python -m chatbot.checkpoint",
        description="Copy a checkpoint into a new folder: as int8, from GPT-2, or with its LoRA adapter merged.",
    )
    parser.add_argument(
        "source",
        help="checkpoint folder, `default`, folder of a transformers GPT-2 or chat model, or of a LoRA adapter",
    )
    parser.add_argument("target", help="new folder")
    parser.add_argument("--int8", action="store_true", help="store matrices as int8 with one scale per row")
    parser.add_argument(
        "--layer_types",
        nargs="+",
        choices=LAYER_TYPES,
        default=["softmax"],
        metavar="MIXER",
        help="mixers of an imported GPT-2, repeated over its layers; only softmax keeps its outputs (default: softmax)",
    )
    args = parser.parse_args(argv)
    copy(args.source, args.target, args.int8, args.layer_types)
    print(translate(f"{args.target}: {(Path(args.target) / WEIGHTS).stat().st_size / 1e6:.1f} MB of weights"))

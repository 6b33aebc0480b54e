"""Inputs of a run: manifests of its data and the checkpoint of --init, checked before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chatbot.checkpoint.location import resolve
from chatbot.model.device import check_device
from chatbot.text.prepared_set import load_manifest
from chatbot.text.tokenizer import DialogueTokenizer
from training.settings import SettingsError, TrainSettings, split_source
from training.state.run_folder import check_folder


def check_inputs(settings: TrainSettings) -> None:
    """Check device, data, --init and --output in a fraction of a second.

    Raises:
        XianliaoError: The device, the data, --init or --output cannot be used.
    """
    check_device(settings.device)
    path = None if settings.init is None else resolve(settings.init)
    load_manifests(settings)
    check_folder(Path(settings.output), settings.resume)
    if path is not None:
        check_tokenizer(path, DialogueTokenizer.load(split_source(settings.of_stage(0).data[0])[0]))


def load_manifests(settings: TrainSettings) -> list[list[dict[str, Any]]]:
    """Return the manifests of the sets of each stage.

    Raises:
        FileError: A set is missing or damaged.
        SettingsError: The sets have different tokenizers.
    """
    stages = [settings.of_stage(number) for number in range(max(1, len(settings.stages)))]
    manifests = [[load_manifest(split_source(text)[0]) for text in stage.data] for stage in stages]
    if len({manifest["tokenizer_hash"] for stage in manifests for manifest in stage}) > 1:
        raise SettingsError(
            "The prepared sets have different tokenizers. Prepare all of them with the same --tokenizer."
        )
    return manifests


def check_tokenizer(checkpoint: Path, tokenizer: DialogueTokenizer) -> None:
    """Check that a checkpoint has the tokenizer of the data.

    Raises:
        SettingsError: It has another one.
    """
    if DialogueTokenizer.load(checkpoint).to_json() != tokenizer.to_json():
        raise SettingsError(
            f"The data and {checkpoint} have different tokenizers; prepare the data again with --tokenizer {checkpoint}."
        )

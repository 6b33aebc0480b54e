"""The commands that the training view runs and shows."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

import chatbot
from chatbot.storage import first_link_out, read_text
from chatbot.text.yaml_files import read_yaml
from ui.page.chats import ChatError

MODULES = {"xianliao-prepare": "data_prep", "xianliao-train": "training"}
ORDER = ("cpu_finetune", "cpu_smoke", "small", "base")
"""Presets of the package that the view offers, the smallest first; `latent` is an experiment for large sets."""

VALID_SHARE = "0.1"
"""Share of the dialogues for validation: the default is made for larger sets and would leave a few of some hundred."""

MAX_PRESETS = 50
"""Maximum number of YAML files of a folder that are presets."""

MAX_PRESET_BYTES = 4 << 10
"""Maximum size of a preset that the view runs: Python parses YAML at some 150 KB per second. The presets of the package
have about 1 KB."""

SAMPLES = 5
"""Dialogues that the cleaning report shows."""

Command = list[str]
"""A command as a person types it: its name and its arguments."""


@dataclass(frozen=True)
class Preset:
    """A preset of xianliao-train, or a YAML file of the operator.

    Attributes:
        name: Name that is shown.
        config: Value of --config.
        is_new: Whether it trains a new model instead of fine-tuning.
        is_too_large: Whether the file is larger than `MAX_PRESET_BYTES`: the view shows its name and does not run it.
    """

    name: str
    config: str
    is_new: bool
    is_too_large: bool = False


def find_presets(folder: Path) -> list[Preset]:
    """Return the presets of the package and the YAML files of the operator's folder; those with a shape are new models."""
    spec = find_spec("training")
    package = (
        [Path(location) / "presets" for location in (spec.submodule_search_locations or ()) if spec] if spec else []
    )
    paths = [path for location in package for path in _yaml_files(location) if path.stem in ORDER]
    presets = [Preset(path.stem, path.stem, _has_shape(_content(path))) for path in paths]
    presets.sort(key=lambda preset: (preset.is_new, ORDER.index(preset.name)))
    contents = {path: _content(path) for path in _yaml_files(folder)}
    local = [
        Preset(path.name, str(path), _has_shape(content), content is _TOO_LARGE)
        for path, content in contents.items()
        if _is_inside(content, folder)
    ]
    return presets + local


def find_preset(folder: Path, name: object) -> Preset:
    """Return the preset of a name.

    Raises:
        ChatError: No preset has that name, or its file is too large.
    """
    preset = next((preset for preset in find_presets(folder) if preset.name == name), None)
    if preset is None:  # the operator may have removed the file
        raise ChatError("studio_no_preset")
    if preset.is_too_large:
        raise ChatError("studio_large_preset", preset=preset.name, kilobytes=MAX_PRESET_BYTES >> 10)
    return preset


_TOO_LARGE = object()
"""Content of a file that is not parsed, because it is larger than `MAX_PRESET_BYTES`."""


def _content(path: Path) -> Any:
    """Return the content of a YAML file, `_TOO_LARGE`, or None for a file that xianliao-train will report."""
    try:
        if path.stat().st_size > MAX_PRESET_BYTES:
            return _TOO_LARGE
        return _parsed(read_text(path, MAX_PRESET_BYTES))
    except (OSError, ValueError):
        return None


@lru_cache(2 * MAX_PRESETS)
def _parsed(text: str) -> Any:
    """Return the content of a YAML text, which the caller must not change; None for damaged YAML.

    Every order asks for all of them, so they are cached.
    """
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return None


def _yaml_files(folder: Path) -> list[Path]:
    paths = sorted(path for suffix in ("*.yaml", "*.yml") for path in folder.glob(suffix))
    return [path for path in paths if is_own_file(path)][:MAX_PRESETS]


def is_own_file(path: Path) -> bool:
    """Whether a path is a regular file of its folder, not a link that leaves the folder."""
    return path.is_file() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(path.parent))


def _is_inside(content: Any, folder: Path) -> bool:
    """Whether the content of a preset names no data, checkpoint or output outside the folder."""
    waiting, root = [content], Path(os.path.realpath(folder))
    texts, visited = set[str](), set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            texts |= {value, value.split(":")[0]}  # DIR:weight
        elif isinstance(value, (dict, list)) and id(value) not in visited:  # an alias is visited once
            visited.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    return all(is_inside(text, root) for text in texts)


def is_inside(path: str, root: Path) -> bool:
    """Whether a path, absolute or below a folder, stays in the folder; True for a text that cannot be a path."""
    try:
        return Path(os.path.realpath(root / os.path.expanduser(path))).is_relative_to(os.path.realpath(root))
    except ValueError:
        return True


def check_links(*folders: Path) -> None:
    """Check that no link in a prepared set or a run leads out of it: the folder of the view may be from elsewhere.

    Raises:
        ChatError: A link leads out.
    """
    for folder in folders:
        link = folder if folder.is_symlink() else first_link_out(folder, folder)
        if link is not None:
            raise ChatError("studio_link", path=link)


def _has_shape(content: Any) -> bool:
    """Whether the content of a preset sets the shape of a model."""
    return isinstance(content, dict) and "model" in content


def prepare_command(inputs: Sequence[Path], output: Path, checkpoint: str, bot: str = "") -> Command:
    """Return the command that cleans dialogues, with the tokenizer of the checkpoint."""
    command = ["xianliao-prepare", "--input", *map(str, inputs), "--tokenizer", checkpoint, "--output", str(output)]
    command += ["--valid-share", VALID_SHARE, "--preview", str(SAMPLES)]
    return [*command, *([f"--bot={bot}"] if bot else [])]


def train_command(
    data: str, output: Path, checkpoint: str, preset: Preset, device: str = "auto", *switches: str
) -> Command:
    """Return the command that trains; `--init` is left out where the preset makes a new model."""
    init = [] if preset.is_new else ["--init", checkpoint]
    command = ["xianliao-train", "--data", data, *init, "--config", preset.config, "--output", str(output)]
    return [*command, *(["--device", device] if device != "auto" else []), *switches]


def arguments_of(command: Command) -> list[str]:
    """Return the arguments of the process: this Python runs the module of the command."""
    return [sys.executable, "-P", "-m", MODULES[command[0]], *command[1:]]


def environment() -> dict[str, str]:
    """Return the variables for a command: the code of this server, messages in English, no downloads."""
    root = str(Path(chatbot.__file__).resolve().parents[1])
    paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    return {"PYTHONPATH": paths, "XIANLIAO_LANG": "en", "HF_HUB_OFFLINE": "1"}


def shown(command: Command) -> str:
    """Return a command as a line for a terminal."""
    return subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)

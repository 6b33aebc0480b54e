"""Read the settings from flags and a YAML file; report every fault at once and the origin of every setting.

Flags are spelled with dashes (`--max-steps`), YAML keys with underscores (`max_steps`). Flags with underscores, the
older spelling, are accepted.
"""

from __future__ import annotations

import json
import re
from argparse import HelpFormatter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from chatbot.errors import first_line
from chatbot.language.parser import TranslatedHelp
from chatbot.text.yaml_files import read_yaml
from training.settings import (
    LatentTraining,
    ModelSettings,
    Regularization,
    SettingsError,
    StageSettings,
    TrainSettings,
    flag,
    one_sentence,
)

NESTED: dict[str, type] = {
    **{"model": ModelSettings, "regularization": Regularization, "latent_training": LatentTraining},
    "stages": StageSettings,
}
LISTS = ("data", "model.layer_types")
GROUP_TITLES = {
    "model": "shape of a new model (not allowed with --init)",
    "regularization": "regularizers (see training/optim/regularizers.py; 0 switches one off)",
    "latent_training": "schedule of a run with --latent (see training/latent/schedule.py)",
}
SWITCHES = ("resume", "gradient_checkpointing", "compile", "tensorboard")
PRESETS = Path(__file__).with_name("presets")


class DashedParser(TranslatedHelp, ArgumentParser):
    """Parser whose help shows flags with dashes; internally they have the names of the settings."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        text = super().format_help() if formatter is None else super().format_help(formatter)
        return re.sub(r"--[a-z][\w.]*", lambda match: match[0].replace("_", "-"), text)


def build_parser() -> ArgumentParser:
    """Return a parser with every setting as a flag, for --help and for converting values."""
    parser = DashedParser(
        prog="xianliao-train",
        description="Train or fine-tune on prepared sets. Several processes: torchrun --nproc-per-node N -m training …",
        exit_on_error=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="preset (cpu_finetune, cpu_smoke, small or base) or YAML file with any of the settings below; flags override"
        " it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, tokens, memory and minutes of the run, estimated from measured steps on this machine; write"
        " nothing",
    )
    parser.add_argument("--data", nargs="+", type=str, metavar="DIR")
    parser.add_argument("--output", type=str, metavar="DIR")
    for name in SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_class_arguments(TrainSettings, nested_key=None, as_group=False, skip={"data", "output", *SWITCHES})
    texts = help_texts()
    for action in parser._actions:
        if action.dest in texts:
            action.help = texts[action.dest].replace("%", "%%")
    for group in parser._action_groups:  # jsonargparse would take the titles from docstrings
        for action in group._group_actions:
            group.title = GROUP_TITLES.get(action.dest, group.title)
    return parser


def help_texts() -> dict[str, str]:
    """Return the help text of every setting; nested names have a dot."""
    texts = {}
    for entry in fields(TrainSettings):
        texts[entry.name] = entry.metadata["help"]
        if entry.name in NESTED and entry.name != "stages":
            texts |= {f"{entry.name}.{part.name}": part.metadata["help"] for part in fields(NESTED[entry.name])}
    return texts


@dataclass
class CommandLine:
    """A command line, split but not yet converted.

    Attributes:
        flags: (setting name, values) in the order of the command line.
        config: File given with --config.
        old_spellings: Flags that were spelled with underscores.
        is_dry_run: Whether --dry-run is given.
    """

    flags: list[tuple[str, list[str]]] = field(default_factory=list)
    config: str | None = None
    old_spellings: list[str] = field(default_factory=list)
    is_dry_run: bool = False


def read_settings(argv: list[str]) -> tuple[TrainSettings, dict[str, str]]:
    """Return the settings of a command line, and the origin of each setting that is not a default.

    Args:
        argv: Arguments without the program's name.

    Raises:
        SettingsError: Every fault of the file and the flags.
    """
    parser = build_parser()
    faults: list[str] = []
    line = split_flags(argv, faults)
    config = "" if line.config is None else find_config(line.config, faults)
    file = Path(config).name
    from_file = read_file(config, faults) if config else {}
    valid = _valid_entries(parser, from_file, file, faults)
    words: list[str] = []
    for name, values in line.flags:
        if name == "model.layer_types" and not "".join(values).startswith("["):
            values = [json.dumps(values)]
        if _is_valid(parser, name, values, faults):
            words += [f"--{name}", *values]
    namespace = parser.parse_object(valid)
    namespace = parser.parse_args(words, namespace=namespace) if words else namespace
    values_by_name = vars(parser.instantiate_classes(namespace))
    values_by_name = {name: value for name, value in values_by_name.items() if name not in ("config", "dry_run")}
    values_by_name |= {"data": values_by_name["data"] or [], "output": values_by_name["output"] or ""}
    by_flag = {name: "flag" for name, _ in line.flags}
    if "epochs" in by_flag and "min_steps" not in by_flag:
        valid.pop("min_steps", None)
        values_by_name["min_steps"] = 0  # the passes that a person asks for come before the steps of a preset
    settings = TrainSettings(**values_by_name)
    faults += settings.faults()
    if faults:
        raise SettingsError(one_sentence(faults))
    return settings, {**dict.fromkeys(_leaf_names(valid), file), **by_flag}


def spelling_warning(argv: list[str]) -> str | None:
    """Return one line about flags spelled with underscores; None if the command line has none."""
    old = split_flags(argv, []).old_spellings
    if not old:
        return None
    pairs = ", ".join(f"{word} is now {word.replace('_', '-')}" for word in dict.fromkeys(old))
    return f"flags with underscores are the old spelling and still work: {pairs}"


def split_flags(argv: list[str], faults: list[str]) -> CommandLine:
    """Split a command line into flags and their values; unknown flags and stray words are appended to `faults`."""
    known = dict.fromkeys(setting_names())
    line = CommandLine()
    pairs: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            spelling, equals, value = word.partition("=")
            name = spelling.removeprefix("--").replace("-", "_")
            if "_" in spelling and name in known:
                line.old_spellings.append(spelling)
            pairs.append((name, [value] if equals else []))
        elif pairs and _takes_another_value(*pairs[-1]):
            pairs[-1][1].append(word)
        else:
            faults.append(f"{word!r} does not belong to a flag")
    for name, values in pairs:
        if name == "config" and values:
            line.config = values[0]
        elif name == "config":
            faults.append("--config needs a file")
        elif name == "dry_run":
            line.is_dry_run = True
        elif name in known:
            line.flags.append((name, values))
        else:
            near = _nearest(name, [*known, "config", "dry_run"])
            faults.append(f"unknown flag {flag(name)}" + (f"; did you mean {flag(near)}?" if near else ""))
    return line


def _takes_another_value(name: str, values: list[str]) -> bool:
    return name not in (*SWITCHES, "dry_run") and (not values or name in LISTS)


def setting_names() -> Iterator[str]:
    """Yield the names of all settings; nested names have a dot."""
    for entry in fields(TrainSettings):
        nested = NESTED.get(entry.name)
        if nested is None or entry.name == "stages":
            yield entry.name
        else:
            yield from (f"{entry.name}.{part.name}" for part in fields(nested))


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_config(name: str, faults: list[str]) -> str:
    """Return the path of --config: a file, or a preset by its name; a name close to a preset's is a fault."""
    path, presets = Path(name), preset_names()
    if path.is_file():
        return name
    if name in presets or (path.stem in presets and path.suffix in (".yaml", ".yml")):
        return str(PRESETS / f"{path.stem}.yaml")
    near = get_close_matches(path.stem, presets, 1)
    advice = f"did you mean {near[0]}?" if near else f"presets: {', '.join(presets)}"
    faults.append(f"--config {name} is neither a file nor a preset; {advice}")
    return ""


def read_file(path: str, faults: list[str]) -> dict[str, Any]:
    """Return the known keys of a YAML mapping; unknown keys and unreadable files are appended to `faults`."""
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(f"cannot read {path} ({error.strerror})")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        faults.append(f"{path} is not valid YAML ({first_line(error)})")
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        faults.append(f"{path} must hold a mapping of settings, like `learning_rate: 1.0e-3`")
        return {}
    return _known_keys(content, TrainSettings, Path(path).name, "", faults)


def _known_keys(content: dict, kind: type, file: str, prefix: str, faults: list[str]) -> dict[str, Any]:
    names = [entry.name for entry in fields(kind)]
    result: dict[str, Any] = {}
    for name, value in content.items():
        nested = NESTED.get(name)
        if name not in names:
            near = _nearest(str(name), names)
            faults.append(f"{file}: unknown setting {prefix}{name}" + (f"; did you mean {near}?" if near else ""))
        elif name == "stages":
            if not isinstance(value, list) or not all(isinstance(stage, dict) for stage in value):
                faults.append(f"{file}: stages must be a list of mappings, one for each stage")
                continue
            result[name] = [
                _known_keys(stage, StageSettings, file, f"stages[{number}].", faults)
                for number, stage in enumerate(value)
            ]
        elif nested is not None and isinstance(value, dict):
            result[name] = _known_keys(value, nested, file, f"{prefix}{name}.", faults)
        elif nested is not None:
            faults.append(f"{file}: {prefix}{name} must be a mapping")
        elif f"{prefix}{name}".endswith(LISTS) and isinstance(value, str):
            result[name] = [value]
        elif f"{prefix}{name}".endswith(LISTS) and not _is_list_of_strings(value):
            faults.append(f"{file}: {prefix}{name} must be a list of names")
        else:
            result[name] = value
    return result


def _is_list_of_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar known name, compared as a whole or by the part after its dot."""
    known = list(known)
    last_parts = [entry.rpartition(".")[2] for entry in known]
    matches = get_close_matches(name, known, 1) or get_close_matches(name, last_parts, 1)
    return matches[0] if matches else None


def _valid_entries(parser: ArgumentParser, content: dict, file: str, faults: list[str]) -> dict[str, Any]:
    """Return the entries of a file whose values have the right type; append a fault for each other entry."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        if name == "stages":
            result[name] = [
                _valid_part(parser, stage, lambda part: {"stages": [part]}, f"{file}: stages[{number}].", faults)
                or {"name": None}  # jsonargparse rejects an empty mapping
                for number, stage in enumerate(value)
            ]
        elif isinstance(value, dict):
            result[name] = _valid_part(parser, value, _nested_under(name), f"{file}: {name}.", faults)
        else:
            result |= _valid_part(parser, {name: value}, lambda part: part, f"{file}: ", faults)
    return result


def _nested_under(name: str) -> Callable[[dict], dict]:
    return lambda part: {name: part}


def _valid_part(
    parser: ArgumentParser, content: dict, nest: Callable[[dict], dict], label: str, faults: list[str]
) -> dict[str, Any]:
    """Return the valid entries of a mapping; `nest` wraps an entry into a complete settings mapping."""
    result = {}
    for name, value in content.items():
        try:
            parser.parse_object(nest({name: value}), defaults=False)
            result[name] = value
        except Exception as error:  # jsonargparse raises several kinds
            faults.append(f"{label}{name} cannot be {value!r}: {_reason(error)}")
    return result


def _is_valid(parser: ArgumentParser, name: str, values: list[str], faults: list[str]) -> bool:
    try:
        parser.parse_args([f"--{name}", *values], defaults=False)
    except Exception as error:  # jsonargparse raises several kinds
        faults.append(f"{flag(name)} {' '.join(values)}: {_reason(error)}")
        return False
    return True


def _reason(error: Exception) -> str:
    """Return the line of jsonargparse's report that names the expected type."""
    choices = re.findall(r"Expected a typing\.Literal\[(.*)\]", str(error))
    if choices:
        names = re.findall(r"[\w.-]+", choices[-1])
        return f"expected {' or '.join(names)}"
    kinds = [kind for kind in re.findall(r"Expected a <class '(\w+)'>", str(error)) if kind != "NoneType"]
    if kinds:
        return f"expected {' or '.join(dict.fromkeys(kinds))}"
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"[Ee]xpected|Does not validate|needs|requires", line)]
    return (telling or lines or ["invalid value"])[-1].rstrip(".")


def _leaf_names(content: dict, prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaf_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name

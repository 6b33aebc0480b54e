"""Settings from a YAML file and flags: every fault at once, and where each setting came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from chatbot.errors import first_line
from training.settings import ModelSettings, Regularization, SettingsError, StageSettings, TrainSettings, one_sentence

NESTED = {"model": ModelSettings, "regularization": Regularization, "stages": StageSettings}
LISTS = ("data", "model.layer_types")
SWITCHES = ("resume", "gradient_checkpointing", "compile", "tensorboard")


def build_parser() -> ArgumentParser:
    """All settings as flags, for --help and for reading values."""
    parser = ArgumentParser(
        prog="xianliao-train",
        description="Train or fine-tune on prepared sets. Several processes: torchrun --nproc_per_node N -m training …",
        exit_on_error=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below; flags win over it")
    parser.add_argument(
        "--data", nargs="+", type=str, metavar="DIR", help="prepared sets, DIR, DIR:weight or DIR:weight:replies"
    )
    parser.add_argument("--output", type=str, metavar="DIR", help="folder of the run, created")
    for name in SWITCHES:
        text = re.search(rf"^ +{name}: (.*)", TrainSettings.__doc__, re.MULTILINE).group(1)
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(TrainSettings, nested_key=None, as_group=False, skip={"data", "output", *SWITCHES})
    return parser


def read_settings(argv: list[str]) -> tuple[TrainSettings, dict[str, str]]:
    """The settings that a command line asks for, and the origin of each that is no default.

    Args:
        argv: Without the program's name.

    Raises:
        SettingsError: All that is wrong with the file and the flags.
    """
    parser, faults = build_parser(), []
    flags, config = split_flags(argv, faults)
    from_file = read_file(config, faults) if config is not None else {}
    known = _readable(parser, from_file, Path(config).name if config else "", faults)
    words = []
    for name, values in flags:
        if name == "model.layer_types" and not "".join(values).startswith("["):
            values = [json.dumps(values)]
        if _parse(parser, [f"--{name}", *values], f"--{name}", faults):
            words += [f"--{name}", *values]
    value = parser.parse_object(known)
    value = parser.parse_args(words, namespace=value) if words else value
    built = parser.instantiate_classes(value)
    built.pop("config", None)
    settings = TrainSettings(**{**vars(built), "data": built.data or [], "output": built.output or ""})
    faults += settings.faults()
    if faults:
        raise SettingsError(one_sentence(faults))
    origins = dict.fromkeys(_leaves(known), Path(config).name if config else "")
    return settings, {**origins, **{name: "flag" for name, _ in flags}}


def split_flags(argv: list[str], faults: list[str]) -> tuple[list[tuple[str, list[str]]], str | None]:
    """(name, values) of each flag, and the file of --config; unknown names become faults."""
    known = dict.fromkeys(setting_names())
    flags: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flags.append((name, [value] if equals else []))
        elif flags and (not flags[-1][1] or flags[-1][0] in LISTS) and flags[-1][0] not in SWITCHES:
            flags[-1][1].append(word)
        else:
            faults.append(f"{word!r} belongs to no flag")
    config = None
    for name, values in list(flags):
        if name == "config":
            config = values[0] if values else faults.append("--config needs a file")
        elif name not in known:
            faults.append(f"there is no --{name}{_nearest(name, known)}")
    return [(name, values) for name, values in flags if name in known], config


def setting_names() -> Iterator[str]:
    """Names of all settings, nested ones with a dot."""
    for entry in fields(TrainSettings):
        nested = NESTED.get(entry.name)
        if nested is None or entry.name == "stages":
            yield entry.name
        else:
            yield from (f"{entry.name}.{part.name}" for part in fields(nested))


def read_file(path: str, faults: list[str]) -> dict:
    """A YAML mapping; unknown keys and what cannot be read become faults."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(f"{path} cannot be read ({error.strerror})")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        faults.append(f"{path} is no YAML ({first_line(error)})")
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        faults.append(f"{path} must hold a mapping of settings, like `learning_rate: 1.0e-3`")
        return {}
    return _known(content, TrainSettings, Path(path).name, "", faults)


def _known(content: dict, kind: type, file: str, prefix: str, faults: list[str]) -> dict:
    names = [entry.name for entry in fields(kind)]
    kept = {}
    for name, value in content.items():
        nested = NESTED.get(name)
        if name not in names:
            faults.append(f"{file}: there is no setting {prefix}{name}{_nearest(str(name), names)}")
        elif name == "stages":
            if not isinstance(value, list) or not all(isinstance(stage, dict) for stage in value):
                faults.append(f"{file}: stages must be a list of mappings, one for each stage")
                continue
            label = "stages[{}]."
            kept[name] = [_known(s, StageSettings, file, label.format(n), faults) for n, s in enumerate(value)]
        elif nested is not None and isinstance(value, dict):
            kept[name] = _known(value, nested, file, f"{prefix}{name}.", faults)
        elif nested is not None:
            faults.append(f"{file}: {prefix}{name} must be a mapping")
        elif f"{prefix}{name}".endswith(LISTS) and isinstance(value, str):
            kept[name] = [value]  # one of them
        elif f"{prefix}{name}".endswith(LISTS) and not _is_list_of_strings(value):
            faults.append(f"{file}: {prefix}{name} must be a list of names")
        else:
            kept[name] = value
    return kept


def _is_list_of_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _nearest(name: str, known) -> str:
    near = get_close_matches(name, list(known), 1) or get_close_matches(name, [k.rpartition(".")[2] for k in known], 1)
    return f"; did you mean {near[0]}?" if near else ""


def _readable(parser: ArgumentParser, content: dict, file: str, faults: list[str]) -> dict:
    """The part of a file whose values have the right type; the others become faults."""
    kept = {}
    for name, value in content.items():
        if name == "stages":
            kept[name] = [
                _fitting_part(parser, stage, lambda part: {"stages": [part]}, f"stages[{number}].", file, faults)
                or {"name": None}  # jsonargparse takes no empty one
                for number, stage in enumerate(value)
            ]
        elif isinstance(value, dict):
            kept[name] = _fitting_part(parser, value, lambda part, name=name: {name: part}, f"{name}.", file, faults)
        else:
            kept |= _fitting_part(parser, {name: value}, lambda part: part, "", file, faults)
    return kept


def _fitting_part(parser, content: dict, place, prefix: str, file: str, faults: list[str]) -> dict:
    """The entries of a mapping that can be read; `place` puts one where it stands in the whole."""
    kept = {}
    for name, value in content.items():
        try:
            parser.parse_object(place({name: value}), defaults=False)
            kept[name] = value
        except Exception as error:  # jsonargparse raises several kinds
            faults.append(f"{file}: {prefix}{name} cannot be {value!r}: {_reason(error)}")
    return kept


def _parse(parser: ArgumentParser, words: list[str], label: str, faults: list[str]) -> bool:
    try:
        parser.parse_args(words, defaults=False)
    except Exception as error:  # jsonargparse raises several kinds
        faults.append(f"{label} {' '.join(words[1:])}: {_reason(error)}")
        return False
    return True


def _reason(error: Exception) -> str:
    """The line of jsonargparse's report that says what was expected."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    kinds = [kind for kind in re.findall(r"Expected a <class '(\w+)'>", str(error)) if kind != "NoneType"]
    if kinds:
        return f"expected {' or '.join(dict.fromkeys(kinds))}"
    told = [line for line in lines if re.search(r"[Ee]xpected|Does not validate|needs|requires", line)]
    return (told or lines or ["it cannot be read"])[-1].rstrip(".")


def _leaves(content: dict, prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def describe(settings: TrainSettings, origins: dict[str, str]) -> str:
    """A line a setting, those with an origin of their own first."""
    values = dict(_values(asdict(settings)))
    values["stages"] = [{n: v for n, v in stage.items() if v is not None} for stage in values["stages"]]
    lines = [f"  {name} = {values.pop(name)}  ({origin})" for name, origin in origins.items() if name in values]
    rest = ", ".join(f"{name} {value}" for name, value in values.items())
    return "\n".join(["settings:", *lines, f"  by default: {rest}"])


def _values(content: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value

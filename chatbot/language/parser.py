"""Argument parser whose help and errors are in the language of the terminal."""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from chatbot.language.translation import is_chinese, labelled, translate

_NOT_FIRST = "，。；：、）”》"
"""Punctuation that does not begin a line."""
_NOT_LAST = "（“《"
"""Punctuation that does not end a line."""


def columns(text: str) -> int:
    """Return the number of terminal columns of a text; a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` columns, at spaces and between Chinese characters."""
    lines = [""]
    for piece in re.findall(
        rf"\s+|[{_NOT_LAST}]?[!-~]+[{_NOT_FIRST}]*|[{_NOT_LAST}]?.[{_NOT_FIRST}]*", " ".join(text.split())
    ):
        if lines[-1] and columns(lines[-1] + piece) > width:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
    return lines


class ChineseLines:
    """Mixin of a help formatter: breaks lines by terminal columns and translates the heading of the usage."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)  # type: ignore[misc]  # a method of the class beside this mixin
        text = re.sub(r" \(type: (.*), default: (.*)\)$", r"（类型 \1，默认 \2）", text)  # by jsonargparse
        return re.sub(r" \(default: (.*)\)$", r"（默认 \1）", text)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in wrap(text, width - len(indent)))

    def add_usage(self, usage: Any, actions: Iterable[Any], groups: Iterable[Any], prefix: str | None = None) -> None:
        heading = translate("usage: ") if prefix is None else prefix
        super().add_usage(usage, actions, groups, heading)  # type: ignore[misc]  # a method of the class beside this mixin


class TranslatedHelp(argparse.ArgumentParser):
    """Mixin of a parser that translates its help texts when they are shown."""

    def format_help(self, *args: Any) -> str:
        self._translate_texts()
        return super().format_help(*args)

    def format_usage(self, *args: Any) -> str:
        self._translate_texts()
        return super().format_usage(*args)

    def _translate_texts(self) -> None:
        formatter: Any = self.formatter_class
        if not is_chinese() or issubclass(formatter, ChineseLines):
            return
        chinese: Any = type("ChineseFormatter", (ChineseLines, formatter), {})
        self.formatter_class = chinese
        self.description = self.description and translate(self.description)
        for group in self._action_groups:
            group.title = group.title and translate(group.title)
            group.description = group.description and translate(group.description)
        for action in self._actions:
            if action.help and action.help is not argparse.SUPPRESS:
                action.help = translate(action.help)


class Parser(TranslatedHelp, argparse.ArgumentParser):
    """argparse's parser in the language of the terminal; for a misspelt option it names the closest one."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line of usage and one line with the error, and exit with code 2."""
        faults = [] if message.startswith("ambiguous option") else self._unknown_flags()
        if faults and message.startswith("unrecognized arguments: "):
            message = "; ".join(faults)
        elif faults:
            message = "; ".join([*faults, message])
        message = "; ".join([message, *self._choice_faults(message)])
        hint = translate("(see --help)")
        self.exit(2, f"{translate('usage: ')}{self.prog} … {hint}\n{self.prog}: {labelled('error: ', message)}\n")

    def _unknown_flags(self) -> list[str]:
        """Return a message for each word of the command line that looks like an option but is not one."""
        known = list(self._option_string_actions)
        faults = []
        for word in dict.fromkeys(word.partition("=")[0] for word in self._words):
            if word.startswith("--") and len(word) > 2 and not any(name.startswith(word) for name in known):
                near = get_close_matches(word.replace("_", "-"), known, 1)
                faults.append(f"unknown flag {word}; did you mean {near[0]}?" if near else f"unknown flag {word}")
        return faults

    @staticmethod
    def _choice_faults(message: str) -> list[str]:
        """Return a hint with the closest valid choice if argparse reports an invalid choice, else an empty list."""
        match = re.search(r"invalid choice: '(.+)' \(choose from (.+)\)$", message)
        near = get_close_matches(match[1], re.findall(r"[\w.-]+", match[2]), 1) if match else []
        return [f"perhaps you meant {near[0]}?"] if near else []

"""No regular expression takes time quadratic in the length of a text: clients choose the texts."""

from __future__ import annotations

import importlib
import pkgutil
import re
import string
import time

import pytest

import chatbot.safety
import chatbot.text
import ui

LENGTH, SECONDS = 3_000, 0.01
"""A pattern that tries a run at each of its characters takes .02 s or more for this length; a linear one, below .0005 s."""


def patterns() -> dict[str, re.Pattern]:
    """Return the compiled patterns of all modules that see clients' texts, by module and name."""
    by_name = {}
    for package in (chatbot.safety, chatbot.text, ui):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if "ray" in module.name or module.name.endswith("__main__"):
                continue
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                    by_name[f"{module.name}.{name}"] = value
    return by_name


PATTERNS = patterns()


def seconds(pattern: re.Pattern, text: str) -> float:
    """Return the CPU seconds of a search through a text, the best of three if the first is slow."""
    times = []
    while not times or (min(times) > SECONDS and len(times) < 3):
        begin = time.thread_time()
        sum(1 for _ in pattern.finditer(text))
        times.append(time.thread_time() - begin)
    return min(times)


def test_patterns_are_found():
    assert len(PATTERNS) > 20


@pytest.mark.parametrize("name", PATTERNS)
def test_a_run_of_any_unit_is_searched_in_linear_time(name):
    pattern = PATTERNS[name]
    special = sorted({c for c in re.sub(r"\\.", "", pattern.pattern) if not c.isalnum()})[:10]
    singles = [*string.printable, *"中一著@＠．《<\u202e\u200b\u0301", *special]
    units = [*singles, *(a + b for a in special for b in (*special, "a", "1", "中"))]
    slow = {
        unit
        for unit in dict.fromkeys(units)
        for around in ("{}", "a{}", "中{}", "<{}", "{}中")
        if seconds(pattern, around.replace("{}", unit * (LENGTH // len(unit)))) > SECONDS
    }
    assert not slow


def test_the_former_pattern_would_fail():
    assert seconds(re.compile("[@!]+(?=[a-z])"), "@" * LENGTH) > SECONDS

"""No regular expression takes time quadratic in the length of a text: clients and authors of data choose the texts."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import string
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import chatbot.safety
import chatbot.text
import data_prep
import ui
from data_prep.cleaning.rules import FILTERS, NORMALISERS
from data_prep.reading.chat_logs import parse_header, parse_time
from data_prep.reading.thoughts import join_thoughts, without_thoughts, without_whole_thoughts
from tests.pattern_texts import Run, runs_of

LENGTH, SECONDS = 3_000, 0.001
"""A pattern that takes less time for a run of this length is not measured with a longer one."""
LONGER, FACTOR = 4, 8
"""A run of `LONGER` times the length takes 4 times the time of a linear pattern, and 16 times that of a quadratic one."""
PACKAGES = (chatbot.safety, chatbot.text, data_prep, ui)
SEARCHES = {"search", "finditer", "findall", "sub", "subn", "split"}
"""Methods that try a match at each character; `match` and `fullmatch` try one."""


def modules() -> dict[str, ModuleType]:
    """Return all modules that see the texts of clients or of data files, by name."""
    names = [
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        if "ray" not in module.name and not module.name.endswith("__main__")
    ]
    return {name: importlib.import_module(name) for name in names}


MODULES = modules()
TREES = {name: ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")) for name, module in MODULES.items()}


def patterns() -> dict[str, re.Pattern]:
    """Return the compiled patterns of these modules, by module and name."""
    by_name, known = {}, set()
    for module_name, module in MODULES.items():
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern) and isinstance(value.pattern, str) and id(value) not in known:
                known.add(id(value))
                by_name[f"{module_name}.{name}"] = value
    return by_name


PATTERNS = patterns()
DATA_PATTERNS = {name: pattern for name, pattern in PATTERNS.items() if name.startswith("data_prep.")}


def uses() -> dict[int, set[str]]:
    """Return the methods of each pattern that the modules call, by the id of the pattern."""
    methods: dict[int, set[str]] = {}
    for name, module in MODULES.items():
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                value = vars(module).get(node.value.id)
                if isinstance(value, re.Pattern):
                    methods.setdefault(id(value), set()).add(node.attr)
    return methods


USES = uses()


def seconds(action: Callable[[str], object], text: str) -> float:
    """Return the seconds of processor time of an action on a text, the best of three if the first is slow."""
    times: list[float] = []
    while not times or (min(times) > SECONDS and len(times) < 3 and sum(times) < 1):
        begin = time.thread_time()
        action(text)
        times.append(time.thread_time() - begin)
    return min(times)


def search_all(pattern: re.Pattern) -> Callable[[str], object]:
    return lambda text: sum(1 for _ in pattern.finditer(text))


def actions(pattern: re.Pattern) -> list[Callable[[str], object]]:
    """Return the kinds of matching for which a pattern is used."""
    methods = USES.get(id(pattern), SEARCHES)
    single = [getattr(pattern, name) for name in ("match", "fullmatch") if name in methods]
    return [*single, *([search_all(pattern)] if methods & SEARCHES else [])]


def runs(special: list[str]) -> Iterator[Run]:
    """Yield runs of each printable and some other characters and of pairs with the special characters."""
    singles = [*string.printable, *"中一著@＠．《<\u202e\u200b\u0301", *special]
    units = [*singles, *(a + b for a in special for b in (*special, "a", "1", "中"))]
    for unit in dict.fromkeys(units):
        for before, after in (("", ""), ("a", ""), ("中", ""), ("<", ""), ("", "中"), ("a", "b")):
            yield Run(before, unit, after)


def special_characters(pattern: str) -> list[str]:
    return sorted({c for c in re.sub(r"\\.", "", pattern) if not c.isalnum()})[:10]


def slow_run(action: Callable[[str], object], texts: Iterable[Run]) -> Run | None:
    """Return the first run for which an action takes more than linear time, or None."""
    for run in texts:
        short = seconds(action, run.text(LENGTH))
        if short > SECONDS and seconds(action, run.text(LONGER * LENGTH)) > FACTOR * short:
            return run
    return None


def test_patterns_are_found():
    assert len(PATTERNS) > 80
    assert len(DATA_PATTERNS) > 60


def test_every_pattern_of_preparing_has_a_name():
    unnamed = [
        f"{name}: line {node.lineno}"
        for name, tree in TREES.items()
        if name.startswith("data_prep.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr in {*SEARCHES, "match", "fullmatch"}
    ]
    assert not unnamed, "compile these patterns in a variable of their module, so that this test sees them"


@pytest.mark.parametrize("name", PATTERNS)
def test_a_run_of_any_unit_is_searched_in_linear_time(name):
    pattern = PATTERNS[name]
    texts = list(runs(special_characters(pattern.pattern)))
    for action in actions(pattern) if name in DATA_PATTERNS else [search_all(pattern)]:
        assert slow_run(action, texts) is None


@pytest.mark.parametrize("name", DATA_PATTERNS)
def test_a_run_behind_any_beginning_of_a_match_is_searched_in_linear_time(name):
    pattern = DATA_PATTERNS[name]
    texts = list(runs_of(pattern))
    for action in actions(pattern):
        assert slow_run(action, texts) is None


@pytest.mark.parametrize("rule", [*NORMALISERS, *FILTERS], ids=lambda rule: rule.name)
def test_a_cleaning_rule_takes_linear_time(rule):
    if rule.name == "traditional":
        pytest.skip("OpenCC is optional and has no patterns")
    action = rule.apply if rule in NORMALISERS else rule.matches
    assert slow_run(action, runs(["[", "(", "（", "/", "-", "_", ">", ":", "：", "。"])) is None


HOSTILE = (
    "<think>",
    "</think>",
    "< ",
    "<a ",
    "<think> ",
    " <think>",
    "\n<think>",
    "◁think▷",
    "</think><think>",
    "<th",
    " ",
)


@pytest.mark.parametrize("action", [without_thoughts, without_whole_thoughts, parse_header])
def test_a_text_of_hostile_units_takes_linear_time(action):
    around = ("|", "<|", "<think>|", "<|a", "|</think>", "2020-01-01|x", "10:30|x", "|x", "* |x")
    assert slow_run(action, (Run(a.split("|")[0], unit, a.split("|")[1]) for unit in HOSTILE for a in around)) is None


def test_thoughts_that_begin_where_others_end_are_joined_in_linear_time():
    def join(text: str) -> list:
        return list(join_thoughts(enumerate(text.split("\n"), 1), Path("a.txt")))

    assert join("<think>a\n</think><think>\nb</think>好") == [(1, "好")]
    assert slow_run(join, [Run("<think>\n", "</think><think>\n", "</think>好")]) is None


def test_a_time_of_many_digits_is_not_a_time():
    assert parse_time("9" * 5_000 + "-1-1 1:1") is None
    assert parse_time("2026-1-1 " + "9" * 400 + ":10") is None


@pytest.mark.parametrize(
    ("former", "method"),
    [
        ("[@!]+(?=[a-z])", "finditer"),
        (r"\s*(?:<think>)", "finditer"),
        (r"<think>(?:(?!</think>).)*</think>", "finditer"),
        (r"(?:^|\n)\s*(?:Human|Assistant)\s*[:：]", "finditer"),
        (r"\d{4}-\d{1,2}[\sT,，]*(?:上午)?\s*\d:\d\d", "match"),
        (r"[*+-]\s+(?:上午)?\s*\d{1,2}:\d{2}\s.*", "match"),
        (r"#{2,6}\s+(?P<name>.{1,2}?)\s*", "fullmatch"),
    ],
)
def test_the_former_patterns_would_fail(former, method):
    pattern = re.compile(former, re.DOTALL)
    action = search_all(pattern) if method == "finditer" else getattr(pattern, method)
    assert slow_run(action, runs_of(pattern)) is not None

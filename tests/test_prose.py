"""The check of the words and names finds what it names and leaves plain sentences alone."""

from __future__ import annotations

import pytest

from tests.prose import COMPILED, ROOMS, ROOT, vague_names, vague_script_names


@pytest.mark.parametrize(
    "text",
    [
        "Of its random numbers.",
        "This is no checkpoint.",
        "Reads what is left of the queue",
        "Whoever reads it waits",
        "at most 120 requests a minute",
        "so that nobody waits",
        "a thread of its own",
        "Removes all that it wrote",
        "where the file stands",
    ],
)
def test_habits_are_found(text):
    assert any(pattern.search(text) for pattern in COMPILED.values())


@pytest.mark.parametrize(
    "text",
    [
        "Return the logits of the next token.",
        "Keep the best tokens of each row, and EOS.",
        "Seconds of a request; of the rest, none.",
        "at most 120 requests per minute",
        "The token is not special, and its id is no longer needed.",
        "What is the layout?",
    ],
)
def test_plain_sentences_pass(text):
    assert not any(pattern.search(text) for pattern in COMPILED.values())


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "for place in range(3): pass",
        "def said(): pass",
        "def f(own): pass",
        "class A:\n    kept: int = 0",
        "import a as go",
        "x = [1 for _take in y]",
        "self.found = 1",
        "if (found := 1): pass",
        "f = lambda found: 1",
    ],
)
def test_names_that_do_not_say_what_they_hold_are_found(tmp_path, source):
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    assert len(list(vague_names(path))) == 1


def test_a_name_of_another_library_may_be_used(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("rows = table.take(order)\nmatches = place_of(found_at)\n", encoding="utf-8")
    assert not list(vague_names(path))


@pytest.mark.parametrize("source", ["const found = 1;", "xl.tree = { place: (index) => 1 };", "draw((said) => 1);"])
def test_names_of_scripts_are_found_too(tmp_path, source):
    path = tmp_path / "page.js"
    path.write_text(source, encoding="utf-8")
    assert len(list(vague_script_names(path))) == 1
    path.write_text(f'// {source}\nconst text = "found", row = list.found;\n', encoding="utf-8")
    assert not list(vague_script_names(path))


@pytest.mark.parametrize("room", ROOMS)
def test_no_name_of_the_code_is_vague(room):
    assert not [(path, *name) for path in sorted((ROOT / room).rglob("*.py")) for name in vague_names(path)]
    assert not [(path, *name) for path in sorted((ROOT / room).rglob("*.js")) for name in vague_script_names(path)]

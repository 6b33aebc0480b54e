"""The check of the words and names finds what it names and leaves plain sentences alone."""

from __future__ import annotations

import pytest

from tests import prose
from tests.prose import COMPILED, NAMED, ROOT, files, name_faults, vague_names, vague_script_names


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


@pytest.mark.parametrize("folder", [name for name in NAMED if (ROOT / name).is_dir()])
def test_no_name_of_the_code_or_its_tests_is_vague(folder):
    assert [fault for path in files([folder]) for fault in name_faults(path)] == []


def test_tests_are_checked_for_their_names_and_others_for_their_words_too(tmp_path, monkeypatch, capsys):
    for folder in ("tests", "lite"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "module.py").write_text('"""This is no module."""\n\nfound = 1\n', encoding="utf-8")
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["prose"])
    assert prose.main() == 1
    faults = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert faults == ["lite/module.py", "tests/module.py", "lite/module.py"]  # the names, then the words

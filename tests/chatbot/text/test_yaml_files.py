"""YAML from elsewhere is plain data, or one sentence."""

from __future__ import annotations

import string

import pytest
import yaml

from chatbot.evaluation.grid import Grid, GridError
from chatbot.language.translation import labelled
from chatbot.safety import SafetyError
from chatbot.safety.rules import Care
from chatbot.text.yaml_files import MAX_CHARACTERS, read_yaml

BOMB = 'a: &a ["x","x","x","x","x","x","x","x","x"]\n' + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip(string.ascii_lowercase[:8], string.ascii_lowercase[1:9], strict=True)
)
HOSTILE = {
    "object": '!!python/object/apply:os.system ["exit 1"]',
    "bomb": BOMB,
    "circle": "a: &a [*a]",
    "number": "a: " + "9" * 10_000,
    "date": "a: 2001-99-99",
    "nested": "[" * 20_000,
    "repeated": "learning_rate: 1\nepochs: 2\nlearning_rate: 3\n",
    "null": "a: \x00",
    "key": "? {a: 1}\n: 2",
    "long": "a: " + "b" * MAX_CHARACTERS,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_is_one_line(name, tmp_path):
    with pytest.raises(yaml.YAMLError) as refused:
        read_yaml(HOSTILE[name])
    assert str(refused.value)
    (tmp_path / "grid.yaml").write_text(HOSTILE[name], encoding="utf-8")
    with pytest.raises(GridError, match="cannot be read") as refused:
        Grid.read(tmp_path / "grid.yaml")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["number", "nested", "bomb", "repeated"])
def test_a_training_config_of_this_kind_is_one_sentence(name, tmp_path, capsys):
    arguments = pytest.importorskip("training.arguments")
    (tmp_path / "c.yaml").write_text(HOSTILE[name], encoding="utf-8")
    faults: list[str] = []
    assert arguments.read_file(str(tmp_path / "c.yaml"), faults) == {}
    assert len(faults) == 1
    assert "is not valid YAML" in faults[0]


def test_safety_files_are_read_in_the_same_way():
    with pytest.raises((yaml.YAMLError, SafetyError)):
        Care.read(BOMB)


def test_ordinary_yaml_is_read_as_before():
    text = "a: &x {b: 1.0e-3, c: [1, yes, null]}\nd:\n  <<: *x\n  b: 2\n"
    assert (
        read_yaml(text)
        == yaml.safe_load(text)
        == {"a": {"b": 1e-3, "c": [1, True, None]}, "d": {"b": 2, "c": [1, True, None]}}
    )
    assert read_yaml("") is None


def test_an_error_that_quotes_a_file_does_not_steer_the_terminal():
    shown = labelled("error: ", "Cannot open \x1b[31mred\x9b1m \u202eback.\nNext line.")
    assert shown.count("\n") == 1
    assert all(character.isprintable() for character in shown.replace("\n", ""))
    assert labelled("error: ", "读不了 é 😀。").endswith("读不了 é 😀。")

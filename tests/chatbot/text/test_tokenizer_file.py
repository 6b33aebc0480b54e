"""A tokenizer.json from elsewhere is refused in a sentence before it can run for long or fill the memory."""

from __future__ import annotations

import json

import pytest

from chatbot.errors import TokenizerError
from chatbot.text.tokenizer import DialogueTokenizer
from chatbot.text.tokenizer_file import check_tokenizer, is_bounded_pattern, read_tokenizer
from chatbot.text.tokenizer_training import _PIECES
from tests.processor_time import processor_seconds

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = QWEN2.replace(r"]?\p{L}+", r"]?+\p{L}+").replace(r"\p{N}]+[\r\n]*", r"\p{N}]++[\r\n]*")
IN_USE = [
    GPT2,
    QWEN2,
    LLAMA3,
    TEKKEN,
    CL100K,
    _PIECES,
    r"\s+",
    r"[\r\n]",
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"\s?\p{L}+",
]


@pytest.mark.parametrize("pattern", IN_USE)
def test_patterns_in_use_are_bounded(pattern):
    assert is_bounded_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a+)+$", "(a|a)*$", "(a*)*b", "(?:a|b)+", "(?:a+)b", "(?=a+)b", "(?<=a)b", "(?R)"),
        *("a*a*b", "a*a*a*", "a{1,3}+", "a{99}b", "[a-z]*[a-z]*d", "a?" * 9 + "a" * 9),
        *(r"(a)\1", r"\1", r"\Ga", r"\X+", "((((", "[", "[[:alpha:]]+", "a" * 2000, "a|" * 100, "(?:a|aa)" * 6 + "b"),
    ],
)
def test_patterns_that_can_backtrack_are_not(pattern):
    assert not is_bounded_pattern(pattern)


@pytest.fixture
def content(tokenizer):
    return json.loads(tokenizer.to_json())


def written(content, folder):
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def replace(text: str, new: str) -> dict:
    return {"type": "Replace", "pattern": {"String": text}, "content": new}


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def normalizers(*steps: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(steps)}


NESTED: dict = {"type": "NFC"}
for _ in range(20):
    NESTED = normalizers(NESTED)
REGEX = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}

BOMBS = {
    "growth": ({"normalizer": normalizers(*[replace("a", "aa")] * 14)}, "normalizer replaces text by the longer"),
    "one growth": ({"normalizer": replace("a", "a" * 1000)}, "normalizer replaces text by the longer"),
    "empty match": ({"normalizer": {**REGEX, "pattern": {"Regex": "a*"}, "content": "bb"}}, "longer"),
    "prepend": ({"normalizer": {"type": "Prepend", "prepend": "a" * 9999}}, "normalizer replaces text by the longer"),
    "regex": ({"normalizer": REGEX}, r"normalizer has the regular expression '\(a\+\)\+\$'"),
    "many steps": ({"normalizer": normalizers(*[{"type": "NFC"}] * 1000)}, "normalizer has 1000 steps"),
    "nested steps": ({"normalizer": NESTED}, "sequences within sequences"),
    "precompiled": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "component 'Precompiled'"),
    "split": ({"pre_tokenizer": split("(a+)+$")}, "pre_tokenizer has the regular expression"),
    "back reference": ({"pre_tokenizer": split(r"(.*)\1b")}, "pre_tokenizer has the regular expression"),
    "decoder": ({"decoder": {**REGEX}}, "decoder has the regular expression"),
    "unknown component": ({"pre_tokenizer": {"type": "Evil"}}, "pre_tokenizer has the component 'Evil'"),
    "post processor": ({"post_processor": {"type": "Evil"}}, "post_processor has the component 'Evil'"),
    "empty pattern": ({"normalizer": replace("", "a")}, "longer"),
    "no type": ({"normalizer": {}}, "cannot be read"),
    "list": ({"normalizer": [[]]}, "cannot be read"),
    "added": ({"added_tokens": "abc"}, "cannot be read"),
    "model": ({"model": None}, "cannot be read"),
}


def template(*single: str) -> dict:
    pieces = [{"Sequence": {"id": name, "type_id": 0}} for name in single]
    return {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {}}


ADDED = {"content": " ", "single_word": False, "lstrip": True, "rstrip": True, "normalized": True, "special": False}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
MARKED = {"vocab": {"a": 0, "##b": 1, "ab": 2, "你": 3, "#你": 4, "b": 5}, "merges": []}
PANICS = {
    "second text": ({"post_processor": template("B")}, {}, "post_processor has a template for one text"),
    "both texts": ({"post_processor": template("A", "B")}, {}, "post_processor has a template for one text"),
    "second text in a sequence": (
        {"post_processor": {"type": "Sequence", "processors": [template("A"), template("B")]}},
        {},
        "post_processor has a template for one text",
    ),
    "removed token": ({"normalizer": STRIP, "added_tokens": [{**ADDED, "id": 0}]}, {}, "removes the added token ' '"),
    "long prefix": ({}, {**MARKED, "continuing_subword_prefix": "#" * 100_000}, "has continuing_subword_prefix = '##"),
    "long suffix": ({}, {**MARKED, "end_of_word_suffix": "#" * 100_000}, "has end_of_word_suffix = '##"),
    "no prefix": ({}, {**MARKED, "continuing_subword_prefix": "##", "merges": [["a", "b"]]}, "mark '##': 'b'"),
    "cut character": ({}, {**MARKED, "continuing_subword_prefix": "#", "merges": ["a 你"]}, "mark '#': '你'"),
}
"""Files with which the package tokenizers writes a panic to stderr, ends the process, or needs more time and memory."""


@pytest.mark.parametrize(("changes", "model", "words"), PANICS.values(), ids=PANICS)
def test_files_that_panic_are_refused_before_the_library_runs_them(content, tmp_path, capfd, changes, model, words):
    path = written(content | changes | {"model": content["model"] | model}, tmp_path)
    with pytest.raises(TokenizerError, match=words):
        DialogueTokenizer.load(path)
    assert capfd.readouterr().err == ""


def test_a_template_for_one_text_and_marks_of_parts_are_accepted(content, tmp_path):
    content["post_processor"] = template("A")
    content["model"] |= {**MARKED, "continuing_subword_prefix": "##", "merges": [["a", "##b"]], "byte_fallback": False}
    content |= {"added_tokens": [], "pre_tokenizer": None}
    assert read_tokenizer(written(content, tmp_path) / "tokenizer.json").encode("ab").tokens == ["ab"]


@pytest.mark.parametrize(("changes", "words"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_and_named(content, tmp_path, changes, words):
    def refuse() -> None:
        with pytest.raises(TokenizerError, match=words) as refusal:
            DialogueTokenizer.load(written(content | changes, tmp_path))
        assert "\n" not in str(refusal.value)

    assert processor_seconds(refuse, 1) < 1


MODELS = {
    "dropout": ({"dropout": 0.1}, "dropout"),
    "type": ({"type": "Evil"}, "type 'Evil'"),
    "huge id": ({"vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "a": 4_000_000_000}}, "id 4000000000"),
    "negative id": ({"vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": -2}}, "id -2"),
    "id of text": ({"vocab": {"[PAD]": "0", "[CLS]": 1, "[SEP]": 2}}, "id '0'"),
    "id with a gap": ({"vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "a": 99}, "merges": []}, "cannot be read"),
    "merges": ({"merges": [["a", "不在"]]}, "cannot be read"),
    "merges of numbers": ({"merges": [1, 2]}, "cannot be read"),
    "long words": ({"type": "WordPiece", "max_input_chars_per_word": 10**9}, "max_input_chars_per_word"),
    "unknown token": ({"type": "WordLevel", "unk_token": "gone"}, "cannot be read"),
    "no vocabulary": ({"vocab": None}, "cannot be read"),
}


@pytest.mark.parametrize(("changes", "words"), MODELS.values(), ids=MODELS)
def test_models_without_bounds_are_refused(content, tmp_path, changes, words):
    with pytest.raises(TokenizerError, match=words):
        DialogueTokenizer.load(written(content | {"model": content["model"] | changes}, tmp_path))


def test_the_vocabulary_is_bounded(content):
    vocabulary = dict.fromkeys(range((1 << 20) + 1), 0)
    with pytest.raises(TokenizerError, match="1,048,577 tokens"):
        check_tokenizer(content | {"model": content["model"] | {"vocab": vocabulary}})


def test_added_tokens_are_bounded(content, tmp_path):
    token = content["added_tokens"][0]
    for added, words in (
        ([{**token, "content": ""}], "empty"),
        ([{**token, "content": "a" * 2000}], "longer than 1000"),
        ([{**token, "id": 10**9}], "id 1000000000"),
        ([{**token, "id": number} for number in range(20_000)], "20,000 added"),
    ):
        with pytest.raises(TokenizerError, match=words):
            DialogueTokenizer.load(written(content | {"added_tokens": added}, tmp_path))


def test_usual_components_are_accepted(content, tmp_path):
    changes = {
        "normalizer": normalizers(
            {"type": "NFKC"}, replace("“", '"'), {**REGEX, "pattern": {"Regex": r"\s+"}, "content": " "}
        ),
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split(LLAMA3), {"type": "Digits", "individual_digits": True}],
        },
    }
    assert DialogueTokenizer.load(written(content | changes, tmp_path)).encode("你好  呀")


PADDING = {
    **{"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None},
    **{"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"padding": {**PADDING, "strategy": {"Fixed": 10**9}}},
        {"padding": {**PADDING, "pad_to_multiple_of": 10**9}},
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 10**6}},
    ],
)
def test_a_file_that_asks_for_padding_or_truncation_gets_neither(tokenizer, tmp_path, changes):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    assert DialogueTokenizer.load(tmp_path).encode("今天心情不太好") == tokenizer.encode("今天心情不太好")

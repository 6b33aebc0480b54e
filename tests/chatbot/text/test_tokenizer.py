from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from chatbot.text.tokenizer import SPECIAL_TOKENS, DialogueTokenizer, TokenizerError
from tests.conftest import ROOT

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HARD = [
    "[SEP]",
    "[CLS]你好[SEP]",
    "<0xE4><0xBD>",
    "😀🏳️‍🌈",
    "𠀀𪚥",
    "a  b\n\t",
    " 前后 ",
    "\x00",
    "e\u0301",
    "\u202e右到左",
]


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips_without_special_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids.intersection(ids)


@pytest.mark.parametrize("text", HARD)
def test_hard_text_round_trips(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids.intersection(ids)
    assert tokenizer.encode_batch([text]) == [ids]


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_a_stream_only_grows_and_ends_with_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    shown = [tokenizer.decode_complete(ids[:end]) for end in range(1, len(ids) + 1)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(shown))
    assert (shown or [""])[-1] == text


def test_half_a_character_is_never_shown(tokenizer):
    ids = tokenizer.encode("好😀")
    assert len(ids) >= 4  # the emoji is spelled in bytes
    assert [tokenizer.decode_complete(ids[:end]) for end in range(2, 6)] == ["好", "好", "好", "好😀"]
    assert tokenizer.decode_complete([*ids, *ids[1:-1]]) == "好😀"  # a whole character before half a one stays


def test_lone_surrogates_become_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = DialogueTokenizer.load(tmp_path)
    assert again.to_json() == tokenizer.to_json()
    assert [again.encode(text) for text in HARD] == [tokenizer.encode(text) for text in HARD]


def test_transformers_reads_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (
        tokenizer.pad_id,
        tokenizer.cls_id,
        tokenizer.sep_id,
    )
    assert SPECIAL_TOKENS[2] == theirs.eos_token


def test_training_is_the_same_every_time(dialogues):
    """Also in another process, with other hashes, where the alphabet limit leaves characters out."""
    code = "import json, sys; from chatbot.text.tokenizer import DialogueTokenizer; import hashlib; "
    code += "texts = json.load(sys.stdin); t = DialogueTokenizer.train(texts, vocab_size=700); "
    code += "print(hashlib.sha256(t.to_json().encode()).hexdigest())"
    texts = json.dumps([turn for turns in dialogues for turn in turns])
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code]
        run = subprocess.run(
            command, input=texts, capture_output=True, text=True, cwd=ROOT, env=environment, check=True
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1


def test_faults_are_sentences(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        DialogueTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{half")
    with pytest.raises(TokenizerError, match="cannot be read"):
        DialogueTokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match="too small"):
        DialogueTokenizer.train(["你好"], vocab_size=100)


@pytest.mark.parametrize("change", ["not special", "truncation", "padding"])
def test_a_file_from_elsewhere_does_not_turn_typed_text_into_special_tokens(tokenizer, change):
    """Whatever the flags in tokenizer.json say."""
    content = json.loads(tokenizer.to_json())
    if change == "not special":
        for token in content["added_tokens"]:
            token["special"] = False
    elif change == "truncation":
        content["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    else:
        content["padding"] = {
            "strategy": {"Fixed": 20},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": tokenizer.sep_id,
            "pad_type_id": 0,
            "pad_token": "[SEP]",
        }
    other = DialogueTokenizer(Tokenizer.from_str(json.dumps(content)))
    for text in ("[SEP]", "你好[CLS]再见", "今天吃什么好呢"):
        assert other.encode(text) == tokenizer.encode(text)
        assert other.encode_batch([text]) == [tokenizer.encode(text)]
        assert other.special_ids.isdisjoint(other.encode(text))

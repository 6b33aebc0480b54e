"""No reply has a control, private or unassigned character, also of a model that prefers bytes."""

from __future__ import annotations

import math
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatbot.decoding.hf_generate import reply_processors
from chatbot.decoding.rules.readable import LAST_READABLE, ReadableText, readable_text
from chatbot.text.characters import is_readable

BYTES = tuple(bytes([value]) for value in range(256))
PIECES = (
    b"",
    b"",
    b"",
    *BYTES,
    "你".encode(),
    "你".encode()[1:] + b"a",
    "好".encode() + "你".encode()[:2],
    b"\x00a",
    b"ok",
)
RULE = readable_text(PIECES, False)


def allowed_after(*reply: bytes) -> set[bytes]:
    logits = torch.zeros(1, len(PIECES))
    RULE.apply(logits, [[PIECES.index(piece, 3) for piece in reply]])
    return {PIECES[token] for token in (logits[0] == 0).nonzero().flatten().tolist()}


def test_between_characters():
    allowed = allowed_after(b"ok")
    assert {b"", b"a", b" ", b"\xe4", b"\xc3", b"\xf0", PIECES[-5], PIECES[-3]} <= allowed
    refused = {b"\x00", b"\n", b"\x1a", b"\x7f", b"\x80", b"\xbf", b"\xc0", b"\xc1", b"\xee", b"\xf1", b"\xf5", b"\xff"}
    assert not refused & allowed
    assert PIECES[-2] not in allowed  # \x00a


def test_inside_a_character_only_what_continues_it():
    first, second, third = (bytes([byte]) for byte in "你".encode())
    assert allowed_after(first) == {b"", *(bytes([byte]) for byte in range(0x80, 0xC0)), PIECES[-4]}
    assert third in allowed_after(first, second)
    assert b"a" not in allowed_after(first, second)
    assert allowed_after(PIECES[-3]) == allowed_after(first, second)
    assert b"a" in allowed_after(first, second, third)
    assert b"\xa0" not in allowed_after(b"\xed")  # surrogates
    assert b"\xbf" not in allowed_after(b"\xef", b"\xbf")  # U+FFFF
    assert b"\x80" not in allowed_after(b"\xe0")  # an overlong form
    assert b"\x80" not in allowed_after(b"\xc2")  # U+0080, a control character


@given(st.characters(codec="utf-8"))
def test_exactly_the_readable_characters_can_be_spelled(character):
    prefix, can = [], True
    for byte in character.encode():
        can = can and bytes([byte]) in allowed_after(*prefix)
        prefix.append(bytes([byte]))
    assert can == is_readable(character)


def test_no_character_after_the_last_plane_is_readable():
    assert not any(map(is_readable, map(chr, range(LAST_READABLE + 1, 0x110000, 97))))
    assert is_readable(chr(0x3134A))


def test_rows_do_not_disturb_each_other():
    logits = torch.randn(3, len(PIECES), generator=torch.Generator().manual_seed(0))
    replies = [[], [PIECES.index(b"\xe4")], [PIECES.index(b"ok")]]
    together = logits.clone()
    RULE.apply(together, replies)
    for row in range(3):
        alone = logits[row : row + 1].clone()
        RULE.apply(alone, [replies[row]])
        assert torch.equal(together[row : row + 1], alone)


def test_a_chat_model_may_use_lines():
    rule = ReadableText(PIECES, lambda character: character == "\n" or is_readable(character))
    logits = torch.zeros(1, len(PIECES))
    rule.apply(logits, [[]])
    assert logits[0, PIECES.index(b"\n")] == 0
    assert logits[0, PIECES.index(b"\t")] == -math.inf


@pytest.mark.parametrize("method", ["sample", "greedy", "beam"])
def test_a_bot_that_prefers_bytes_says_text(bot, method):
    preferred = {token: 20 for token, piece in enumerate(bot.vocabulary.pieces) if len(piece) == 1}
    for seed in range(6):
        reply = bot.respond(
            ["囍龘"], seed, method=method, temperature=2 if method == "sample" else 1, logit_bias=preferred
        )
        text = bot.tokenizer.decode(reply.token_ids)
        assert all(unicodedata.category(character) not in ("Cc", "Co", "Cn") for character in reply.text)
        assert "\ufffd" not in text[:-1]  # only the last character may be unfinished


def test_the_rule_is_in_the_list_for_transformers(bot):
    rules = reply_processors(bot.settings, bot.vocabulary, 1)
    scores = rules(torch.tensor([[5]]), torch.zeros(1, len(bot.vocabulary.pieces)))
    control = bot.vocabulary.pieces.index(b"\x01")
    assert scores[0, control] == -math.inf

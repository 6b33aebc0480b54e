"""Normaliser of repeated characters and phrases."""

from __future__ import annotations

import re

from data_prep.cleaning.rule import stable

MAX_REPEATS = 4
"""Maximum number of equal characters in a row; for equal phrases of 2 to 10 characters, the maximum is one less."""
_MAX_LETTERS = 7
_CHARACTERS = re.compile(rf"([^0-9A-Za-z\s])\1{{{MAX_REPEATS},}}")  # 哈哈哈哈哈
_LETTERS = re.compile(rf"([A-Za-z])\1{{{_MAX_LETTERS},}}")  # hhhhhhhhh
_PHRASES = re.compile(rf"(?=[^0-9])(.{{2,10}}?)\1{{{MAX_REPEATS - 1},}}", re.DOTALL)  # 好的好的好的好的
_ELLIPSES = re.compile(r"\.{3,}|。{3,}|…{2,}|⋯+|・{3,}")  # 。。。


@stable
def repeats(text: str) -> str:
    """Cut runs of one character to 4 and of one phrase to 3, turn dots into one `…`; digits are kept."""
    if "。。。" in text or "……" in text or "..." in text or "⋯" in text or "・・・" in text:
        text = _ELLIPSES.sub("…", text)
    if len(text) - len(set(text)) < MAX_REPEATS:
        return text
    if max(map(text.count, set(text))) < MAX_REPEATS:  # quicker than searching for runs in vain
        return text
    text = _CHARACTERS.sub(lambda match: match[1] * MAX_REPEATS, text)
    text = _LETTERS.sub(lambda match: match[1] * _MAX_LETTERS, text)
    return _PHRASES.sub(lambda match: match[0] if match[1].isdigit() else match[1] * (MAX_REPEATS - 1), text)

"""Normalisers of single characters: white space, control characters, width, punctuation, script."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from chatbot.text.dialogue import valid_text
from data_prep.cleaning.rule import stable

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, as a range for a character class."""
EMOJI = (
    "\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u27bf\u2934\u2935"
    "\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
"""Emoji, as a range for a character class."""
_CHINESE_CHARACTER = re.compile(f"[{HAN}]")


def no_chinese(text: str) -> bool:
    """Whether a text has no Chinese character."""
    return _CHINESE_CHARACTER.search(text) is None


_WHITE = re.compile("[\t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\uffff\ud800-\uf8ff\U000e0000-\U0010ffff]"
    f"|(?<![{EMOJI}\ufe0f])\u200d|\u200d(?![{EMOJI}])"  # a joiner that joins no emoji
    f"|(?<![{EMOJI}#*0-9])\ufe0f"  # "show as emoji" behind another character
)
_PRINTABLE_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0\ufffc\ufffd"
).union(map(chr, range(0xFE00, 0xFE10)), map(chr, range(0xE0100, 0xE01F0)))
"""Characters of `_INVISIBLE` that Python calls printable."""


@stable
def control_characters(text: str) -> str:
    """Turn white space of any kind into a space and remove invisible, private and replacement characters.

    Joiners within an emoji are kept.
    """
    if text.isprintable() and _PRINTABLE_INVISIBLE.isdisjoint(text):
        return text
    return _INVISIBLE.sub("", _WHITE.sub(" ", text))


_FULL_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
_FULL_WIDTH |= {
    ord(wide): ord(narrow) for wide, narrow in zip("＃％＆＋－．／＝＠＿｀＂＇", "#%&+-./=@_`\"'", strict=True)
}
_WIDE = frozenset(map(chr, _FULL_WIDTH))


def full_width(text: str) -> str:
    """Turn full-width letters, digits and `＃％＆＋－．／＝＠＿｀＂＇` into ASCII; Chinese punctuation is kept."""
    return text if _WIDE.isdisjoint(text) else text.translate(_FULL_WIDTH)


_WESTERN = re.compile(f"(?<=[{HAN}])[,?!]+")
_CHINESE = str.maketrans(",?!", "，？！")


def punctuation(text: str) -> str:
    """Turn `, ? !` right after a Chinese character into `， ？ ！`; numbers and English are kept."""
    return _WESTERN.sub(lambda match: match[0].translate(_CHINESE), text)


def spaced_letters(text: str) -> str:
    """Join letters and digits too where every character stands alone, as in LCCC: `1 8 岁` becomes `18岁`.

    Off by default: a file does not say whether `1 8` was 18, and scores on LCCC are those of its text as it is.
    """
    parts = text.split()
    if len(parts) > 2 and all(len(part) == 1 for part in parts) and not no_chinese(text):
        return "".join(parts)
    return text


def traditional(text: str) -> str:
    """Turn traditional characters into simplified ones (OpenCC, tw2s); the one rule that can make a text longer.

    `tw2s` also knows the characters of Taiwan: 看著 becomes 看着, and 著名 stays.

    Raises:
        FileError: OpenCC is not installed.
    """
    return _opencc().convert(valid_text(text)).replace("妳", "你")


@cache
def _opencc() -> Any:
    import opencc

    return opencc.OpenCC("tw2s")

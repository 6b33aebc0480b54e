"""Removes invisible characters and unifies equivalent ones. Data preparation and chat share these functions.

Each function is idempotent. Needs neither torch nor transformers.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any, Literal

from chatbot.text.dialogue import clean_turn, valid_text

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, as a range for a character class."""
EMOJI = (
    "\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u27bf\u2934\u2935"
    "\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
"""Emoji, as a range for a character class."""

WHITE = "\t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space other than the space, as a range for a character class."""
INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\uffff\ud800-\uf8ff\U000e0000-\U0010ffff"
)
"""Invisible, private and replacement characters, as a range for a character class."""
KEYCAPS = "#*0-9"
"""Characters that are emoji if U+FE0F follows, as a range for a character class."""

_WHITE = re.compile(f"[{WHITE}]")
_INVISIBLE = re.compile(
    f"[{INVISIBLE}]"
    f"|(?<![{EMOJI}\ufe0f])\u200d|\u200d(?![{EMOJI}])"  # a joiner that joins no emoji
    f"|(?<![{EMOJI}{KEYCAPS}])\ufe0f"  # "show as emoji" behind another character
)
_PRINTABLE_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0\ufffc\ufffd"
).union(map(chr, range(0xFE00, 0xFE10)), map(chr, range(0xE0100, 0xE01F0)))
"""Characters of `_INVISIBLE` that Python calls printable."""


def control_characters(text: str) -> str:
    """Turn white space of any kind into a space and remove invisible, private and replacement characters.

    Joiners within an emoji are kept.
    """
    if text.isprintable() and _PRINTABLE_INVISIBLE.isdisjoint(text):
        return text
    while (changed := _INVISIBLE.sub("", _WHITE.sub(" ", text))) != text:
        text = changed
    return text


FULL_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
FULL_WIDTH |= {
    ord(wide): ord(narrow) for wide, narrow in zip("＃％＆＋－．／＝＠＿｀＂＇", "#%&+-./=@_`\"'", strict=True)
}
"""Code points of full-width letters, digits and marks, and of their ASCII forms."""
_WIDE = frozenset(map(chr, FULL_WIDTH))


def full_width(text: str) -> str:
    """Turn full-width letters, digits and `＃％＆＋－．／＝＠＿｀＂＇` into ASCII; Chinese punctuation is kept."""
    return text if _WIDE.isdisjoint(text) else text.translate(FULL_WIDTH)


_JOINERS = frozenset("\u200d\ufe0f")
"""Characters that are invisible and part of many emoji."""


@cache
def is_readable(character: str) -> bool:
    """Whether a character may be part of a reply: it is assigned, and neither a control nor a private character."""
    if unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn"):
        return False
    return character in _JOINERS or not _INVISIBLE.match(character)


ZHU_AFTER, ZHU_BEFORE = "名原显卓昭巨论专译编合土遗拙撰较", ("名", "作", "者", "述", "称", "录", "书立说")
"""著 is not the particle 着 after one of these characters or before one of these texts."""
TAIWAN = str.maketrans("妳牠", "你它")
"""Characters that only Taiwan uses, and their replacements."""
_ZHU = re.compile(f"(?<![{ZHU_AFTER}])著(?!{'|'.join(ZHU_BEFORE)})")


def simplified(text: str) -> str:
    """Turn traditional characters into simplified ones (OpenCC, t2s), including characters that only Taiwan uses.

    The particle 著 becomes 着 (看著 is 看着); words such as 著名 and 原著 keep 著.

    >>> simplified("她看著原著")
    '她看着原著'
    """
    text = valid_text(text)
    return text if text.isascii() else _ZHU.sub("着", _opencc("t2s").convert(text).translate(TAIWAN))


def traditional(text: str) -> str:
    """Turn simplified characters into traditional ones, as in Taiwan (OpenCC, s2tw)."""
    return text if text.isascii() else _opencc("s2tw").convert(text)


def script_of(text: str) -> Literal["simplified", "traditional"] | None:
    """Return the script of a text, or None if all its characters are the same in both scripts."""
    if simplified(text) != text:
        return "traditional"
    return None if traditional(text) == text else "simplified"


@cache
def _opencc(conversion: str) -> Any:
    import opencc  # imported when a text needs it, so that --help answers quickly

    return opencc.OpenCC(conversion)


def typed_text(text: str, keep_lines: bool = False) -> str:
    """Bring a text that a person typed into the form of the cleaned training data; it may become empty.

    Invisible characters are removed, and spaces of any kind and full-width letters and digits become ASCII.

    Args:
        text: The text.
        keep_lines: Whether line breaks are kept, for models that know them.

    >>> typed_text("你\\u200b好\\u3000Ａ\\u00a0１")
    '你好A 1'
    """
    if keep_lines:
        return "\n".join(map(typed_text, text.splitlines())).strip()
    return clean_turn(full_width(control_characters(text)))

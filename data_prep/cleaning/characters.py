"""Normalisers of single characters that only preparation uses: punctuation, spaced letters."""

from __future__ import annotations

import re

from chatbot.text.characters import HAN

_CHINESE_CHARACTER = re.compile(f"[{HAN}]")


def no_chinese(text: str) -> bool:
    """Whether a text has no Chinese character."""
    return _CHINESE_CHARACTER.search(text) is None


_WESTERN = re.compile(f"(?<=[{HAN}])[,?!]+")
_CHINESE = str.maketrans(",?!", "，？！")


def punctuation(text: str) -> str:
    """Turn `, ? !` right after a Chinese character into `， ？ ！`; numbers and English are kept."""
    return _WESTERN.sub(lambda match: match[0].translate(_CHINESE), text)


def spaced_letters(text: str) -> str:
    """Join all parts of a text, letters and digits included, if each is one character: `1 8 岁` becomes `18岁`.

    Off by default: a file does not say whether `1 8` was 18, and scores on LCCC refer to its unchanged text.
    """
    parts = text.split()
    if len(parts) > 2 and all(len(part) == 1 for part in parts) and not no_chinese(text):
        return "".join(parts)
    return text

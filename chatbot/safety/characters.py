"""Characters in place of others: look-alikes of Latin letters, digits and symbols, escapes, right-to-left overrides."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

_ALIKE = {
    "a": "аαᴀɑꭺꓮ",
    "b": "вьъβʙɓƀᏼꮟꓐ",
    "c": "сςᴄꮯꓚⲥ",
    "d": "ԁᴅđðɗꭰꓓ",
    "e": "еєεᴇɛɵꭼꓰⲉ",
    "f": "ғꜰƒꓝ",
    "g": "ɡɢǥցɠꮐꓖ",
    "h": "нһհʜħɦꮋꓧ",
    "i": "іӏιıɩɪɨꭵꮖꓲⲓ",
    "j": "јյϳᴊꭻꓙ",
    "k": "кқκᴋƙꮶꓗⲕ",
    "l": "ʟłƚɭꮮꓡ",
    "m": "мᴍꮇꓟⲙ",
    "n": "пηɴոŋɲꓠⲛ",
    "o": "оοσᴏօøɔꓳⲟө",
    "p": "рρᴘƥꮲꓑⲣ",
    "q": "ԛգꞯʠ",
    "r": "гʀɾɼꭱꮢꓣ",
    "s": "ѕꜱʂꮪꓢ",
    "t": "тτᴛŧƭʈեꭲꓔⲧ",
    "u": "иυᴜսʉꓴ",
    "v": "ѵνᴠʋⱱꮩꓦ",
    "w": "ԝшωᴡꮃꓪ",
    "x": "хχꓫⲭ",
    "y": "уүʏƴγꓬ",
    "z": "ζᴢƶʐꮓꓜ",
}
_ENCLOSED = (0x1F150, 0x1F170, 0x1F1E6)
"""First letters in black circles, in black squares and of flags. NFKD resolves those in white circles and squares."""
LOOKALIKES = {
    **{chr(first + number): chr(97 + number) for first in _ENCLOSED for number in range(26)},
    **{character: letter for letter, characters in _ALIKE.items() for character in characters},
}
"""Latin letter for each character that looks like one, after NFKD and in lower case: Cyrillic, Greek, Armenian, Coptic,
Cherokee and Lisu ones, small capitals, and letters with strokes or hooks."""
STANDS_FOR = str.maketrans("0123456789l", "oizeasgtbgi")
"""Letter that a digit stands for in a Latin word (su1c1de); l becomes i, because 1 can stand for both."""
SYMBOLS = dict(zip("!！¡|｜£$＄@＠€+＋", "1111115544377", strict=True))
"""Digit for each symbol that stands for a Latin letter next to another one (k!ll, $uicide); see `STANDS_FOR`."""
PICTURES = dict(zip("💀☠🔪", "亡亡杀", strict=True))
"""Character for each picture that people write in its place (想💀)."""
MOST_LETTERS = 24
"""Maximum length of a Latin word that is looked up."""

_ESCAPE = re.compile(
    r"\\u(?P<four>[0-9a-f]{4})|\\[ux]\{(?P<braces>[0-9a-f]{1,6})\}|&#x(?P<hex>[0-9a-f]{1,6});?|&#(?P<number>[0-9]{1,7});?"
    r"|(?P<bytes>%[0-7][0-9a-f]|%[cd][0-9a-f]%[89ab][0-9a-f]|%e[0-9a-f](?:%[89ab][0-9a-f]){2}"
    r"|%f[0-7](?:%[89ab][0-9a-f]){3})",
    re.IGNORECASE | re.ASCII,
)
_PICTURES = str.maketrans(PICTURES)
_SYMBOL = f"[{re.escape(''.join(SYMBOLS))}]"
_BETWEEN_LETTERS = re.compile(
    # a run is tried at its start only, and whole: trying it at every symbol would take time quadratic in its length
    f"(?<=[A-Za-zＡ-Ｚａ-ｚ]){_SYMBOL}++|(?<!{_SYMBOL}){_SYMBOL}++(?=[A-Za-zＡ-Ｚａ-ｚ])"
)
_OVERRIDE, _EMBEDDINGS, _END, _LINE_ENDS = "\u202e", "\u202a\u202b\u202d\u202e", "\u202c", "\n\r\u2029"
_REPEATED = re.compile(r"([a-z])\1+")
_RESPELLED = re.compile(r"[a-z][0-9]|[0-9][a-z]|([a-z])\1\1")


def unescaped(text: str) -> tuple[str, list[int]] | None:
    """Return a text with its escapes decoded, and the index in the original of every character of the result.

    Escapes are those of JSON (backslash u 6B7B), HTML (&#27515; &#x6B7B;) and addresses (%E6%AD%BB). They are decoded
    once: an escape of an escape remains. None means that the text has no escape.
    """
    if not ("\\" in text or "&#" in text or "%" in text):
        return None
    characters: list[str] = []
    places: list[int] = []
    at = 0
    for start, end, character in _escapes(text):
        characters += text[at:start], character
        places += range(at, start + 1)
        at = end
    return ("".join([*characters, text[at:]]), [*places, *range(at, len(text))]) if at else None


def _escapes(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and character of each escape that names a character."""
    for match in _ESCAPE.finditer(text):
        if encoded := match["bytes"]:
            with contextlib.suppress(UnicodeDecodeError):
                yield match.start(), match.end(), bytes.fromhex(encoded.replace("%", "")).decode()
            continue
        digits = match["four"] or match["braces"] or match["hex"]
        code = int(digits, 16) if digits else int(match["number"])
        if code <= 0x10FFFF and not 0xD800 <= code < 0xE000:
            yield match.start(), match.end(), chr(code)


def other_reading(text: str) -> str | None:
    """Return a text as it is displayed, or None if it does not change, with characters for `PICTURES` and with digits for
    the symbols next to Latin letters.

    >>> other_reading("$uicide"), other_reading("\u202e杀自")
    ('5uicide', '自杀\u202e')
    """
    digits = str.maketrans(SYMBOLS)
    shown = displayed(text).translate(_PICTURES)
    other = _BETWEEN_LETTERS.sub(lambda match: match[0].translate(digits), shown)
    return None if other == text else other


def displayed(text: str) -> str:
    """Return a text with the characters in the order in which they are shown, if a right-to-left override reverses them.

    An override (U+202E) reverses the characters up to the end of its line or to the mark that ends it (U+202C).
    """
    if _OVERRIDE not in text:
        return text
    pieces: list[str] = []
    at = depth = 0  # where the next piece begins; open embeddings, of which the outermost is an override
    for index, character in enumerate(text):
        if depth:
            depth += (character in _EMBEDDINGS) - (character == _END)
            if character in _LINE_ENDS or not depth:
                pieces.append(text[at:index][::-1])
                at, depth = index, 0
        elif character == _OVERRIDE:
            pieces.append(text[at:index])
            at, depth = index, 1
    return "".join([*pieces, text[at:][::-1] if depth else text[at:]])


def skeleton(word: str) -> str:
    """Return the form that all spellings of a Latin word share: letters for its digits, no letter twice in a row.

    >>> skeleton("k1lll"), skeleton("kill")
    ('ki', 'ki')
    """
    return _REPEATED.sub(r"\1", word.translate(STANDS_FOR))


def is_respelled(word: str) -> bool:
    """Whether a word of Latin letters and digits has both, or a letter three times in a row."""
    return _RESPELLED.search(word) is not None

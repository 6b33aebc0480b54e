"""Blocked words: a list, and the search for its words in a text."""

from __future__ import annotations

from pathlib import Path

import ahocorasick

from chatbot.errors import FileError, first_line
from chatbot.text.word_lists import read_word_list

WORDS = Path(__file__).with_name("words.txt")


class BlockedWords:
    """Words of a list, in any case. A word that begins or ends with a Latin letter or digit matches only whole English
    words.

    Args:
        path: The list, one word per line.

    Raises:
        FileError: The list cannot be read or is empty.
    """

    def __init__(self, path: Path):
        try:
            words = read_word_list(path)
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"Cannot read the word list {path} ({first_line(error)}). Give a file in UTF-8.") from None
        if not words:
            raise FileError(f"The word list {path} holds no word. Write one word per line, or skip the rule.")
        self._automaton = ahocorasick.Automaton()
        for word in map(str.lower, words):
            self._automaton.add_word(word, word)
        self._automaton.make_automaton()

    def is_in(self, text: str) -> bool:
        """Whether a word of the list is in the text."""
        text = text.lower()
        for end, word in self._automaton.iter(text):
            start = end + 1 - len(word)
            if not (_is_one_word(text, start) or _is_one_word(text, end + 1)):
                return True
        return False


def _is_one_word(text: str, index: int) -> bool:
    """Whether the characters before and at an index are Latin letters or digits, and so belong to one English word."""
    return 0 < index < len(text) and all(text[i].isascii() and text[i].isalnum() for i in (index - 1, index))

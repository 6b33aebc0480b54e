"""BERT's WordPiece tokenizer, from a vocab.txt."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from chatbot.errors import TokenizerError, first_line
from chatbot.storage import read_json, read_text
from chatbot.text.chat_template import SETTINGS_FILE
from chatbot.text.tokenizer_training import SPECIAL_TOKENS, UNKNOWN, add_special_tokens

VOCABULARY_FILE = "vocab.txt"
MAX_VOCABULARY_BYTES = 16 << 20
CONTINUATION = "##"
"""Prefix of a token that continues a word."""
_WORD_END, _WORD_START = re.compile("[a-zA-Z0-9]$"), re.compile("[a-zA-Z0-9]")


def read_vocabulary(folder: Path) -> Tokenizer:
    """Return the tokenizer of a vocab.txt; it lower-cases text unless tokenizer_config.json switches that off.

    Raises:
        TokenizerError: A file is damaged, a token occurs twice, or [UNK] is missing.
    """
    path = folder / VOCABULARY_FILE
    has_settings = (folder / SETTINGS_FILE).is_file()
    settings = read_json(folder / SETTINGS_FILE, TokenizerError) if has_settings else {}
    lower_case = settings.get("do_lower_case", True)
    try:
        names = read_text(path, MAX_VOCABULARY_BYTES).removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"The vocabulary in {folder} cannot be read ({first_line(error)}). Copy it again."
        ) from None
    vocabulary = {name.removesuffix("\r"): index for index, name in enumerate(names)}
    if len(vocabulary) < len(names) or UNKNOWN not in vocabulary or not isinstance(lower_case, bool):
        raise TokenizerError(
            f"{path} is not a vocabulary of BERT's kind. Give a file with each token once, one per line, and {UNKNOWN}."
        )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    no_space_before_chinese = decoders.Replace(Regex(r" (?=[\p{Han}\p{P}])"), "")
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(cleanup=True), no_space_before_chinese])
    add_special_tokens(tokenizer, [token for token in (*SPECIAL_TOKENS, UNKNOWN) if token in vocabulary])
    return tokenizer


def join_words(tokens: Iterable[str]) -> str:
    """Return the text of tokens, with a space between two words of Latin letters or digits and none beside Chinese."""
    text = ""
    for token in tokens:
        if token.startswith(CONTINUATION):
            text += token.removeprefix(CONTINUATION)
        elif _WORD_END.search(text) and _WORD_START.match(token):
            text += " " + token
        else:
            text += token
    return text

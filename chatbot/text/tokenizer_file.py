"""Checks of a tokenizer.json from an unknown source, before the package tokenizers runs it.

A tokenizer file is a program too: a regular expression may backtrack for hours, a replacement may double the text at
every step, and an id of four billion asks for a table of that length. Only components that are in common use
are accepted, and only regular expressions whose running time is bounded by the square of the text's length.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chatbot.errors import TokenizerError, XianliaoError, first_line, shown
from chatbot.storage import read_json

TOKENIZER_FILE = "tokenizer.json"

COMPONENTS = {
    "normalizer": (
        *("NFC", "NFD", "NFKC", "NFKD", "BertNormalizer", "Lowercase", "StripAccents", "Strip", "Replace", "Prepend"),
        *("ByteLevel", "Nmt"),
    ),
    "pre_tokenizer": (
        *("ByteLevel", "BertPreTokenizer", "Split", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits"),
        *("Metaspace", "UnicodeScripts", "CharDelimiterSplit"),
    ),
    "post_processor": ("ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"),
    "decoder": (
        *("ByteLevel", "ByteFallback", "Fuse", "WordPiece", "Metaspace", "BPEDecoder", "Strip", "Replace", "CTC"),
    ),
}
"""Accepted types of each part of the file; a Sequence of them is accepted everywhere."""

MODELS = ("BPE", "WordPiece", "Unigram", "WordLevel")
MAX_STEPS = 16
"""Maximum number of components in one part of the file, including the components of sequences."""

MAX_VOCABULARY, MAX_ADDED_TOKENS, MAX_TOKEN_CHARACTERS = 1 << 20, 16_384, 1_000
MAX_PATTERN_CHARACTERS, MAX_WAYS = 1_000, 40
MAX_MARK_CHARACTERS = 16
"""Maximum length of the mark before or after the parts of a word (`##`, `</w>`), which is copied for every character."""

PROBE = "a 你龘\n1\U0010ffff"
"""Text with known and unknown characters, because some damaged files fail only on characters outside the vocabulary."""

MAX_WORD_CHARACTERS = 1_000
"""Maximum of WordPiece's max_input_chars_per_word, whose square bounds the time of a word."""

_LITERAL = r"\\[^\w\s]|[^\\\[\](){}|?*+^$.\n]"
_IN_CLASS = r"\\[pP]\{\^?\w+\}|\\[dDsSwWrntfv]|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|\\[^\w\s]"
_CLASS = rf"\[\^?(?:{_IN_CLASS}|&&\[\^?(?:{_IN_CLASS}|[^\\\[\]&])+\]|[^\\\[\]&]|&(?!&))+\]"
_ATOM = rf"{_IN_CLASS}|{_CLASS}|[^\\\[\](){{}}|?*+]"
_QUANTIFIER = r"(?P<unbounded>[*+][+?]?)|(?P<optional>\?[+?]?)|\{(?:\d{1,2},)?(?P<most>\d{1,2})\}"
_ITEM = re.compile(
    rf"(?P<bar>\|)|\(\?[!=](?:{_ATOM})\)|(?:(?P<group>\(\?i?:(?:{_LITERAL}|\|)*\))|{_ATOM})(?:{_QUANTIFIER})?"
)


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json after checking it.

    Raises:
        TokenizerError: The file is damaged, has a component that is not supported, or is not bounded in time or size.
    """
    content = read_json(path, TokenizerError, "copy or build it again")
    try:
        check_tokenizer(content)
        # Dialogues need neither padding nor truncation here, and a file could demand any amount of memory for both.
        tokenizer = Tokenizer.from_str(json.dumps({**content, "padding": None, "truncation": None}))
        _check_normalized(tokenizer)
        tokenizer.encode(PROBE, add_special_tokens=False)
        return tokenizer
    except XianliaoError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and PanicException, which is no Exception
        raise TokenizerError(
            f"The tokenizer {path} cannot be read ({first_line(error)}). Copy or build it again."
        ) from None


def check_tokenizer(content: dict[str, Any]) -> None:
    """Check that the components of a tokenizer.json are supported and bounded in time and memory.

    Args:
        content: Content of the file.

    Raises:
        TokenizerError: A component is not supported or not bounded.
        ValueError, TypeError, LookupError, AttributeError: The file does not have the form of a tokenizer.json.
    """
    for part, known in COMPONENTS.items():
        steps = list(_steps(content.get(part), part))
        if len(steps) > MAX_STEPS:
            raise TokenizerError(f"The tokenizer's {part} has {len(steps)} steps. At most {MAX_STEPS} are supported.")
        for step in steps:
            if step["type"] not in known:
                raise _unsupported(part, f"has the component {shown(step['type'])}")
            _check_step(step, part)
    _check_model(content["model"])
    _check_ids(content)


def _unsupported(part: str, fault: str) -> TokenizerError:
    return TokenizerError(f"The tokenizer's {part} {fault}, which is not supported. Use another tokenizer.")


def _steps(component: Any, part: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the components of a part; the components of a sequence are yielded one by one."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    if depth == 4:
        raise _unsupported(part, "has sequences within sequences")
    members = next(value for value in component.values() if isinstance(value, list))
    for member in members:
        yield from _steps(member, part, depth + 1)


def _check_step(step: dict[str, Any], part: str) -> None:
    """Check the pattern and the replacement of a component.

    Raises:
        TokenizerError: The pattern or the replacement is not bounded, or the template of one text has a second text.
    """
    if step["type"] == "TemplateProcessing":
        names = [piece["Sequence"]["id"] for piece in step["single"] if "Sequence" in piece]
        if names.count("A") < len(names):  # the library panics
            raise _unsupported(part, "has a template for one text that names a second text")
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if regex is not None and not is_bounded_pattern(regex):
        raise _unsupported(part, f"has the regular expression {shown(regex)}")
    if part != "normalizer":
        return
    new = step.get("content", step.get("prepend", ""))
    text = pattern.get("String", "") if isinstance(pattern, dict) else ""
    longest = 16 if step["type"] == "Prepend" else 1 if regex == r"\s+" else len(text)
    if len(new) > longest:
        raise _unsupported(part, f"replaces text by the longer text {shown(new)}")


def is_bounded_pattern(pattern: str) -> bool:
    """Whether matching a pattern everywhere in a text of n characters takes at most `MAX_WAYS` * n² steps.

    The patterns of GPT-2, Llama 3, Qwen, Mistral, DeepSeek and this project have the accepted form: alternatives, each
    a sequence of characters and character classes, with quantifiers on single items only. At most one item of an
    alternative may be repeated without a bound, or two if no item after them can fail. So an alternative can be tried
    in at most `_ways` * n ways at one position.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return False
    alternatives: list[list[re.Match[str]]] = [[]]
    position = 0
    while position < len(pattern):
        item = _ITEM.match(pattern, position)
        if item is None:
            return False
        position = item.end()
        if item["bar"]:
            alternatives.append([])
        else:
            alternatives[-1].append(item)
    return sum(map(_ways, alternatives)) <= MAX_WAYS


def _ways(items: list[re.Match[str]]) -> float:
    """Return the number of ways to try an alternative at one position, not counting those of unbounded repetition."""
    ways, unbounded, can_fail = 1, 0, False
    for item in items:
        can_fail |= unbounded > 1 and not item["optional"]
        unbounded += item["unbounded"] is not None
        if item["group"] is not None:
            if item["unbounded"] or item["most"]:
                return inf
            ways *= 1 + item["group"].count("|")
        ways *= 1 + int(item["most"] or (1 if item["optional"] else 0))
    return inf if unbounded > 2 or can_fail else ways


def _check_model(model: dict[str, Any]) -> None:
    """Check the model of a tokenizer.

    Raises:
        TokenizerError: The model is random or not bounded, or a merge does not match the mark of the parts of a word.
    """
    kind = model.get("type")
    if kind not in MODELS:
        raise _unsupported("model", f"has the type {shown(kind)}")
    if model.get("dropout"):
        raise _unsupported("model", "drops merges at random (dropout)")
    characters = model.get("max_input_chars_per_word", 100)
    if not isinstance(characters, int) or not 0 < characters <= MAX_WORD_CHARACTERS:
        raise _unsupported("model", f"has max_input_chars_per_word = {shown(characters)}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(model.get(name) or "") > MAX_MARK_CHARACTERS:
            raise _unsupported("model", f"has {name} = {shown(model[name])}")
    prefix = model.get("continuing_subword_prefix")
    if kind == "BPE" and prefix:
        for merge in model["merges"]:
            second = merge.split(" ")[-1] if isinstance(merge, str) else merge[1]
            if not second.startswith(prefix):  # the library panics or ends the process
                raise TokenizerError(
                    f"The tokenizer merges a part without its mark {shown(prefix)}: {shown(second)}. Build it again."
                )


def _check_normalized(tokenizer: Tokenizer) -> None:
    """Check that no added token is empty after normalization, because the library panics when it looks for one.

    Raises:
        TokenizerError: An added token is empty after normalization.
    """
    if tokenizer.normalizer is not None:
        for token in tokenizer.get_added_tokens_decoder().values():
            if token.normalized and not tokenizer.normalizer.normalize_str(token.content):
                raise TokenizerError(
                    f"The tokenizer's normalizer removes the added token {shown(token.content)}. Use another tokenizer."
                )


def _check_ids(content: dict[str, Any]) -> None:
    """Check the number of tokens and the range of their ids.

    Raises:
        TokenizerError: There are too many tokens, a token is too long, or an id is far above the number of tokens.
    """
    vocabulary, added = content["model"]["vocab"], content.get("added_tokens") or []
    if len(vocabulary) > MAX_VOCABULARY or len(added) > MAX_ADDED_TOKENS:
        raise TokenizerError(
            f"The tokenizer has {len(vocabulary):,} tokens and {len(added):,} added ones. At most {MAX_VOCABULARY:,} and"
            f" {MAX_ADDED_TOKENS:,} are supported."
        )
    names = [token["content"] for token in added]
    if not all(0 < len(name) <= MAX_TOKEN_CHARACTERS for name in names):
        raise TokenizerError(
            f"An added token of the tokenizer is empty or longer than {MAX_TOKEN_CHARACTERS} characters."
        )
    ids = [token["id"] for token in added]
    ids += vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    most = 2 * len(ids) + 1024
    wrong = next((index for index in ids if type(index) is not int or not 0 <= index < most), None)
    if wrong is not None:
        raise TokenizerError(f"The tokenizer has the id {shown(wrong)}, but only {len(ids):,} tokens. Copy it again.")

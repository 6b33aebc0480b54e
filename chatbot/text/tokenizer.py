"""The tokenizer: text to ids and back.

Our tokenizers are trained on the corpus and lossless: characters that are not in the vocabulary are spelled in UTF-8
bytes, so `decode(encode(x)) == x` for any Unicode text, without an [UNK]. An imported checkpoint keeps its WordPiece
tokenizer (BERT's), which is not lossless. A chat model keeps its byte-level BPE tokenizer and its chat template.

Special tokens are ids that `chatbot.text.layouts` writes. Text that spells one ("[SEP]") is encoded as its characters.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, models

from chatbot.errors import TokenizerError, XianliaoError, first_line
from chatbot.text.chat_template import (
    SETTINGS_FILE,
    Template,
    byte_characters,
    dialogpt_template,
    is_byte_level,
    read_template,
    to_marks,
    without_markup,
)
from chatbot.text.dialogue import valid_text
from chatbot.text.layouts import ChatTemplateLayout, DialogptLayout, TurnMarks
from chatbot.text.tokenizer_file import TOKENIZER_FILE, read_tokenizer
from chatbot.text.tokenizer_training import CLS, PAD, SEP, SPECIAL_TOKENS, UNKNOWN, train_tokenizer
from chatbot.text.wordpiece import CONTINUATION, VOCABULARY_FILE, join_words, read_vocabulary

THINKING_TAGS = ("<think>", "</think>")
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_BRACKETED = re.compile(r"\[[A-Za-z0-9]+\]")


class DialogueTokenizer:
    """Text to ids and back.

    Attributes:
        pad_id, cls_id, sep_id: Ids of the special tokens, or of the tokens with these purposes in a chat model.
        vocab_size: Number of ids, special tokens included.
        special_ids: Ids of special tokens. Text is never encoded to them, apart from [UNK], and they are decoded to no
            text, apart from thinking tags.
        layout: Name of the layout of the tokenizer.
        marks: Ids that a chat model's template writes around turns, or None.
        is_wordpiece: Whether this is a WordPiece tokenizer, as BERT's.
    """

    pad_id: int
    cls_id: int
    sep_id: int
    vocab_size: int
    special_ids: frozenset[int]
    _never_typed: frozenset[int | None]
    layout: str
    marks: TurnMarks | None
    is_wordpiece: bool

    def __init__(self, tokenizer: Tokenizer, template: Template | None = None):
        """Wrap a tokenizer.

        Args:
            tokenizer: Our tokenizer, BERT's, or a chat model's.
            template: Chat template of a chat model, from `read_template`.

        Raises:
            TokenizerError: The tokenizer has neither our special tokens nor a chat template, or is of an unknown kind.
            TemplateError: The chat template cannot be used.
        """
        missing = [name for name in SPECIAL_TOKENS if tokenizer.token_to_id(name) is None]
        if not missing:
            self._init_own(tokenizer)
        elif template is not None:
            self._init_chat(tokenizer, template)
        else:
            raise TokenizerError(
                f"The tokenizer has no {' and no '.join(missing)} and no chat template. Use a tokenizer made by"
                " xianliao-prepare, or a chat model's."
            )

    def _init_own(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()  # many tools store truncation and padding in the file
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # a typed "[SEP]" is five characters
        self._stored = self._tokenizer = tokenizer
        if not all(token.special for token in tokenizer.get_added_tokens_decoder().values()):
            self._tokenizer = without_markup(tokenizer)
        self._template: Template | None = None
        self.layout, self.marks = DialogptLayout.name, None
        names = _names(tokenizer)
        ids = {name: index for index, name in names.items()}
        self.pad_id, self.cls_id, self.sep_id = (ids[name] for name in SPECIAL_TOKENS)
        self.vocab_size = tokenizer.get_vocab_size()
        self.is_wordpiece = isinstance(tokenizer.model, models.WordPiece)
        special = {self.pad_id, self.cls_id, self.sep_id}
        if self.is_wordpiece:  # [UNK], [MASK], speakers: never part of a reply
            special |= {index for name, index in ids.items() if _BRACKETED.fullmatch(name)}
        self.special_ids = frozenset(special)
        self._never_typed = self.special_ids - {ids.get(UNKNOWN)}
        self._words = ["" if index in special else names[index] for index in range(self.vocab_size)]
        self._bytes = [bytes_of(word, self.is_wordpiece) for word in self._words]

    def _init_chat(self, tokenizer: Tokenizer, template: Template) -> None:
        """Wrap a chat model's tokenizer; every added token is special, even if its file says otherwise."""
        if not is_byte_level(tokenizer):
            raise TokenizerError(
                "The chat model's tokenizer is not a byte-level BPE. Use a model with a byte-level BPE."
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._stored, self._tokenizer, self._template = tokenizer, without_markup(tokenizer), template
        self.layout, self.is_wordpiece = ChatTemplateLayout.name, False
        names = _names(tokenizer)
        self.vocab_size = max(names) + 1
        unnamed = set(range(self.vocab_size)) - names.keys()
        self.special_ids = frozenset(tokenizer.get_added_tokens_decoder()) | unnamed
        self._never_typed = self.special_ids
        self.marks = to_marks(tokenizer, template, self.special_ids)
        self.sep_id = self.marks.to_person[0]
        pad_id, cls_id = (tokenizer.token_to_id(template.get(name, "")) for name in ("pad_token", "bos_token"))
        self.pad_id = self.sep_id if pad_id is None else pad_id
        self.cls_id = self.sep_id if cls_id is None else cls_id
        byte_of = byte_characters()
        self._words = []
        self._bytes = [
            b"" if index in self.special_ids else bytes(byte_of[character] for character in names[index])
            for index in range(self.vocab_size)
        ]
        for tag in THINKING_TAGS:  # a reply has them only if the model may think, and then they are taken out of it
            if (index := tokenizer.token_to_id(tag)) in self.special_ids:
                self._bytes[index] = tag.encode()

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 4096, min_frequency: int = 2, word_count: int | None = None
    ) -> DialogueTokenizer:
        """Train a tokenizer.

        Args:
            texts: Texts like those that the tokenizer will encode.
            vocab_size: Largest number of ids.
            min_frequency: Pairs of tokens that occur less often are not merged.
            word_count: Build a vocabulary of characters and of words that occur at least this many times; None uses
                byte-pair encoding.

        Raises:
            TokenizerError: `vocab_size` has no room for the special tokens and the 256 bytes, or jieba is not
                installed.
        """
        return cls(train_tokenizer(texts, vocab_size, min_frequency, word_count))

    @classmethod
    def load(cls, folder: str | Path) -> DialogueTokenizer:
        """Read tokenizer.json of a folder, with its chat template if it has one, or the vocab.txt of a BERT vocabulary.

        Raises:
            TokenizerError: A file is missing or damaged.
            TemplateError: The chat template cannot be used.
        """
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            if (Path(folder) / VOCABULARY_FILE).is_file():
                return cls(read_vocabulary(Path(folder)))
            raise TokenizerError(f"{folder} has no {TOKENIZER_FILE}. Give a prepared set or a checkpoint folder.")
        tokenizer, template = read_tokenizer(path), read_template(Path(folder))
        try:
            return cls(tokenizer, template)
        except XianliaoError:
            raise
        except Exception as error:  # a vocabulary that does not have the form of its kind
            raise TokenizerError(
                f"The tokenizer {path} cannot be read ({first_line(error)}). Copy or build it again."
            ) from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and the tokenizer_config.json that transformers' AutoTokenizer reads."""
        folder = Path(folder)
        (folder / TOKENIZER_FILE).write_text(self._stored.to_str(pretty=True), encoding="utf-8")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self._template is not None:
            config |= self._template
        else:
            config |= {"chat_template": dialogpt_template()}
            config |= {"pad_token": PAD, "bos_token": CLS, "eos_token": SEP, "split_special_tokens": True}
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        if self.is_wordpiece:
            config["unk_token"] = UNKNOWN
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")

    def to_json(self) -> str:
        """Return the whole tokenizer as JSON: equal strings mean equal tokenizers."""
        return self._stored.to_str()

    def content(self) -> dict[str, Any]:
        """Return the content of tokenizer.json."""
        return json.loads(self._stored.to_str())

    def split(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """Return the pieces of a text, each with its start and end offset; no token crosses the border of a piece."""
        return self._tokenizer.pre_tokenizer.pre_tokenize_str(text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, never a special token. Lone surrogates, which are not text, become U+FFFD.

        With some files of other projects, typed text can become a special token although its flags forbid it. Such
        texts are encoded again character by character, and ids that are still special are left out.
        """
        text = valid_text(text)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids if self._never_typed.isdisjoint(ids) else self._respell(text)

    def _respell(self, text: str) -> list[int]:
        pieces = [self._tokenizer.encode(character, add_special_tokens=False).ids for character in text]
        return [index for piece in pieces for index in piece if index not in self._never_typed]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        texts = [valid_text(text) for text in texts]
        batch = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        pairs = zip(texts, batch, strict=True)
        return [ids if self._never_typed.isdisjoint(ids) else self._respell(text) for text, ids in pairs]

    def decode(self, ids: Iterable[int], errors: Literal["replace", "ignore"] = "replace") -> str:
        """Return the text of ids.

        Args:
            ids: Ids; special tokens have no text.
            errors: `replace` turns bytes that are not UTF-8 into U+FFFD, `ignore` drops them.
        """
        if self.is_wordpiece:
            return join_words(self._words[index] for index in ids)
        return b"".join([self._bytes[index] for index in ids]).decode("utf-8", errors)

    def decode_complete(self, ids: Iterable[int]) -> str:
        """Like `decode`, but drop the bytes of an unfinished or broken character, so that more ids only append text."""
        return self.decode(ids, "ignore")

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its name in the vocabulary, or None if that token is missing."""
        return self._tokenizer.token_to_id(token)

    def token_bytes(self) -> tuple[bytes, ...]:
        """Return the UTF-8 bytes that each id stands for; empty for a special token."""
        return tuple(self._bytes)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the name of each id in the vocabulary, for display; empty for an id without a name."""
        return [self._tokenizer.id_to_token(index) or "" for index in ids]


def _names(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the name of each id."""
    return {index: name for name, index in tokenizer.get_vocab().items()}


def bytes_of(word: str, is_wordpiece: bool) -> bytes:
    """Return the UTF-8 bytes of a token: those of its text, or the byte that its name spells."""
    if is_wordpiece:
        return word.removeprefix(CONTINUATION).encode("utf-8", "replace")
    return bytes([int(word[3:5], 16)]) if _BYTE.fullmatch(word) else word.encode("utf-8", "replace")

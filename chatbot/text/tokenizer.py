"""The tokenizer: trained on the corpus, lossless, and deaf to special tokens in text.

Byte-pair encoding over characters with byte fallback: whatever is not in the vocabulary is spelled in UTF-8 bytes, so
there is no [UNK] and `decode(encode(x)) == x` for any Unicode text. An imported checkpoint keeps its own WordPiece
tokenizer (BERT's), which is neither, and a chat model its byte-level one, with its template. The special tokens exist
only as ids that `chatbot.text.dialogue` places; text that spells one ("[SEP]") is encoded as its characters.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import log
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from chatbot.errors import XianliaoError, first_line
from chatbot.text.chat_template import byte_characters, is_byte_level, read_template, to_marks, without_markup
from chatbot.text.dialogue import valid_text
from chatbot.text.layouts import ChatTemplateLayout, DialogptLayout, TurnMarks

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"
SPECIAL_TOKENS = (PAD, CLS, SEP)
UNKNOWN = "[UNK]"
TOKENIZER_FILE, VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_HAN = re.compile("[\u3400-\u9fff]")
_BRACKETED = re.compile(r"\[[A-Za-z0-9]+\]")
_WORD_END, _WORD_START = re.compile("[a-zA-Z0-9]$"), re.compile("[a-zA-Z0-9]")

# A piece never mixes scripts: Chinese runs, other letters with the space before them, single digits, punctuation.
_PIECES = r"\p{Han}+| ?[\p{L}&&[^\p{Han}]]+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


class TokenizerError(XianliaoError):
    """A tokenizer that cannot be read or trained; the message is one sentence saying what to do."""


class DialogueTokenizer:
    """Text to ids and back.

    Attributes:
        pad_id, cls_id, sep_id: Ids of the special tokens, or of a chat model's that stand for them.
        vocab_size: Number of ids, special tokens included.
        special_ids: Ids that text never becomes and that have no text.
        layout: Name of the sample layout that goes with it.
        marks: What a chat model's template writes around turns, or None.
    """

    layout = DialogptLayout.name
    marks: TurnMarks | None = None
    is_wordpiece = False
    _template: dict | None = None

    def __init__(self, tokenizer: Tokenizer, template: dict | None = None):
        """Takes a tokenizer of ours or BERT's, or a chat model's with what `read_template` found."""
        missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
        if missing and template is not None:
            self._init_chat(tokenizer, template)
            return
        if missing:
            raise TokenizerError(
                f"The tokenizer has no {' and no '.join(missing)} and no chat template; use one made by xianliao-prepare,"
                " or a chat model's."
            )
        tokenizer.encode_special_tokens = True  # a typed "[SEP]" is five characters
        self._tokenizer = self._stored = tokenizer
        self.pad_id, self.cls_id, self.sep_id = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
        self.vocab_size = tokenizer.get_vocab_size()
        self.is_wordpiece = isinstance(tokenizer.model, models.WordPiece)
        self.special_ids = frozenset((self.pad_id, self.cls_id, self.sep_id))
        if self.is_wordpiece:  # [UNK], [MASK], speakers: never part of a reply
            names = tokenizer.get_vocab()
            self.special_ids |= {names[name] for name in names if _BRACKETED.fullmatch(name)}
        self._pieces = [self._piece(token) for token in range(self.vocab_size)]

    def _init_chat(self, tokenizer: Tokenizer, template: dict) -> None:
        """A chat model's tokenizer: every added token is special, whatever its file says of it."""
        if not is_byte_level(tokenizer):
            raise TokenizerError("The chat model's tokenizer is no byte-level BPE; use a model that has one.")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.layout, self._template = ChatTemplateLayout.name, template
        self._stored, self._tokenizer = tokenizer, without_markup(tokenizer)
        names = {index: name for name, index in tokenizer.get_vocab().items()}
        self.vocab_size = max(names) + 1
        unnamed = set(range(self.vocab_size)) - names.keys()
        self.special_ids = frozenset(tokenizer.get_added_tokens_decoder()) | unnamed
        self.marks = to_marks(tokenizer, template, self.special_ids)
        self.sep_id = self.marks.to_person[0]
        pad_id, cls_id = (tokenizer.token_to_id(template.get(name, "")) for name in ("pad_token", "bos_token"))
        self.pad_id = self.sep_id if pad_id is None else pad_id
        self.cls_id = self.sep_id if cls_id is None else cls_id
        byte_of = byte_characters()
        self._pieces = [
            "" if token in self.special_ids else bytes(byte_of[character] for character in names[token])
            for token in range(self.vocab_size)
        ]

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 4096, min_frequency: int = 2, word_count: int | None = None
    ) -> DialogueTokenizer:
        """Trains a vocabulary of at most `vocab_size` on an iterator of texts.

        Args:
            texts: What the tokenizer is for.
            vocab_size: Most ids.
            min_frequency: A pair of tokens seen less often is not merged.
            word_count: None merges pairs; else words seen so often become tokens, see `_train_words`.

        Raises:
            TokenizerError: `vocab_size` has no room for the special tokens and the 256 bytes, or jieba is missing.
        """
        reserved = list(SPECIAL_TOKENS) + [f"<0x{byte:02X}>" for byte in range(256)]
        if vocab_size < len(reserved) + 64:
            raise TokenizerError(f"A vocabulary of {vocab_size} is too small; ask for at least {len(reserved) + 64}.")
        texts = [valid_text(text) for text in texts]
        most = (vocab_size - len(reserved)) * 5 // 8  # leaves room for words
        # Chosen here and not by the trainer, which breaks ties at its own limit differently in every run.
        counts = Counter(char for text in texts for char in text)
        rare = sorted(counts, key=lambda char: (-counts[char], char))[most:]
        unspelled = str.maketrans(dict.fromkeys(rare, "\n"))
        if word_count is not None:
            characters = sorted(counts, key=lambda char: (-counts[char], char))[:most]
            return cls(_train_words(texts, reserved, characters, vocab_size, word_count))
        learner = Tokenizer(models.BPE(byte_fallback=True))
        learner.pre_tokenizer = _pre_tokenizer()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=reserved, show_progress=False
        )
        learner.train_from_iterator((text.translate(unspelled) for text in texts), trainer)
        learned = json.loads(learner.to_str())["model"]
        merges = [
            tuple(merge) if not isinstance(merge, str) else tuple(merge.split(" ")) for merge in learned["merges"]
        ]
        # Made anew so that only three tokens are special: the trainer would leave the byte tokens special too.
        return cls(_finished(models.BPE(vocab=learned["vocab"], merges=merges, byte_fallback=True)))

    @classmethod
    def load(cls, folder: str | Path) -> DialogueTokenizer:
        """Reads `tokenizer.json` of a folder, with its chat template if any, or the `vocab.txt` of a BERT vocabulary.

        Raises:
            TokenizerError, TemplateError: A file is missing or damaged, or the chat template cannot be used.
        """
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file() and (Path(folder) / VOCABULARY_FILE).is_file():
            return cls(_from_vocabulary(Path(folder)))  # a TokenizerError says what is wrong with it
        if not path.is_file():
            raise TokenizerError(
                f"There is no {TOKENIZER_FILE} in {folder}; give a prepared set or a checkpoint folder."
            )
        try:
            return cls(Tokenizer.from_file(str(path)), read_template(Path(folder)))
        except XianliaoError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise TokenizerError(
                f"{path} cannot be read as a tokenizer ({first_line(error)}); copy or build it again."
            ) from None

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and the tokenizer_config.json that transformers' AutoTokenizer reads."""
        folder = Path(folder)
        (folder / TOKENIZER_FILE).write_text(self._stored.to_str(pretty=True), encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self._template is not None:
            config |= self._template
        else:
            config |= {"pad_token": PAD, "bos_token": CLS, "eos_token": SEP, "split_special_tokens": True}
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        if self.is_wordpiece:
            config["unk_token"] = UNKNOWN
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def to_json(self) -> str:
        """The whole tokenizer as JSON: equal strings mean equal tokenizers."""
        return self._stored.to_str()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; never a special token. Lone surrogates, which are not text, become U+FFFD."""
        return self._tokenizer.encode(valid_text(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        encodings = self._tokenizer.encode_batch_fast([valid_text(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], errors: Literal["replace", "ignore"] = "replace") -> str:
        """Text of ids. Special tokens have no text; bytes that are no UTF-8 become U+FFFD, or nothing."""
        if self.is_wordpiece:
            return self._decode_words(ids)
        parts: list[str] = []
        spelled = bytearray()
        for token in ids:
            piece = self._pieces[token]
            if isinstance(piece, bytes):
                spelled += piece
                continue
            if spelled:
                parts.append(spelled.decode("utf-8", errors))
                spelled.clear()
            parts.append(piece)
        return "".join(parts) + spelled.decode("utf-8", errors)

    def decode_complete(self, ids: Iterable[int]) -> str:
        """`decode` without the bytes of an unfinished or broken character: it only grows as ids are added."""
        return self.decode(ids, "ignore")

    def _decode_words(self, ids: Iterable[int]) -> str:
        """Text of WordPiece ids: a space between two words in Latin letters or digits, none beside Chinese."""
        text = ""
        for token in ids:
            piece = self._pieces[token]
            if piece.startswith("##"):
                text += piece[2:]
            elif _WORD_END.search(text) and _WORD_START.match(piece):
                text += " " + piece
            else:
                text += piece
        return text

    def id_of(self, token: str) -> int | None:
        """Id of a token by its name in the vocabulary, None when there is none."""
        return self._tokenizer.token_to_id(token)

    def _piece(self, token: int) -> str | bytes:
        """What a token stands for: text, a byte, or nothing for a special token."""
        if token in self.special_ids:
            return ""
        name = self._tokenizer.id_to_token(token)
        return bytes([int(name[3:5], 16)]) if _BYTE.fullmatch(name) else name

    def token_bytes(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes that each id stands for; none for a special token."""
        continues = "##" if self.is_wordpiece else ""
        return tuple(
            piece if isinstance(piece, bytes) else piece.removeprefix(continues).encode("utf-8", "replace")
            for piece in self._pieces
        )

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each id's name in the vocabulary, to show a person."""
        return [self._tokenizer.id_to_token(token) for token in ids]


def _from_vocabulary(folder: Path) -> Tokenizer:
    """BERT's tokenizer from a vocab.txt; it lower-cases unless tokenizer_config.json says otherwise.

    Raises:
        TokenizerError: A file is no UTF-8 or JSON, a token stands twice, or there is no [UNK].
    """
    settings: object = {}
    try:
        names = (folder / VOCABULARY_FILE).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if (folder / "tokenizer_config.json").is_file():
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"The vocabulary in {folder} cannot be read ({first_line(error)}); copy it again."
        ) from None
    vocabulary = {name.removesuffix("\r"): index for index, name in enumerate(names)}
    if len(vocabulary) < len(names) or UNKNOWN not in vocabulary or not isinstance(settings, dict):
        raise TokenizerError(
            f"{folder / VOCABULARY_FILE} is no vocabulary of BERT's kind: each token once, {UNKNOWN} among them."
        )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.get("do_lower_case", True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    spaced = decoders.Replace(Regex(r" (?=[\p{Han}\p{P}])"), "")
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(cleanup=True), spaced])
    special = [token for token in (*SPECIAL_TOKENS, UNKNOWN) if token in vocabulary]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _finished(model: models.Model) -> Tokenizer:
    """A tokenizer of ours around a model."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _train_words(
    texts: Sequence[str], reserved: list[str], characters: list[str], vocab_size: int, word_count: int
) -> Tokenizer:
    """Characters and the words seen at least `word_count` times, the most frequent first.

    The vocabulary of 苏剑林's chat model (kexue.fm/archives/7718: BERT's characters and words with a count of 10 or more).
    Words are those that jieba finds; the tokenizer then cuts a text into the likeliest tokens (a unigram model, which is
    what jieba without its HMM is too), so jieba is needed to train it and not to use it.
    """
    try:
        import jieba
    except ImportError:
        raise TokenizerError('A vocabulary of words needs jieba; install it with pip install -e ".[words]".') from None
    jieba.setLogLevel("ERROR")
    split, counts = _pre_tokenizer().pre_tokenize_str, Counter()
    for text in texts:
        for piece, _ in split(text):
            counts.update(jieba.cut(piece, HMM=False) if _HAN.match(piece) else [piece])
    known = set(characters)
    words = [word for word in counts if len(word) > 1 and counts[word] >= word_count and known.issuperset(word)]
    words = sorted(words, key=lambda word: (-counts[word], word))[: vocab_size - len(reserved) - len(characters)]
    total = counts.total()
    scores = [(word, log(max(counts[word], 0.5) / total)) for word in (*characters, *words)]
    never = min(score for _, score in scores) - 10
    return _finished(models.Unigram([*((name, never) for name in reserved), *scores], unk_id=0, byte_fallback=True))


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")

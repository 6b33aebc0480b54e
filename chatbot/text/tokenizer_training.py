"""Training a tokenizer on a corpus: byte-pair encoding, or a vocabulary of characters and frequent words.

Both kinds spell characters that are not in the vocabulary in UTF-8 bytes, so they are lossless.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import log

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chatbot.errors import TokenizerError
from chatbot.text.dialogue import valid_text

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"
SPECIAL_TOKENS = (PAD, CLS, SEP)
UNKNOWN = "[UNK]"
"""Token for unknown characters; only BERT's vocabularies have one."""

_RESERVED = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
_MIN_VOCABULARY = len(_RESERVED) + 64
_HAN = re.compile("[\u3400-\u9fff]")
_PIECES = r"\p{Han}+| ?[\p{L}&&[^\p{Han}]]+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""Tokens stay within one piece: Chinese, other letters with a space before them, a digit, punctuation, or space."""
SPLIT = {"type": "Split", "pattern": {"Regex": _PIECES}, "behavior": "Isolated", "invert": False}
"""The same pattern in the format of tokenizer.json."""


def add_special_tokens(tokenizer: Tokenizer, names: Iterable[str] = SPECIAL_TOKENS) -> None:
    """Mark tokens of a tokenizer's vocabulary as special."""
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def train_tokenizer(texts: Iterable[str], vocab_size: int, min_frequency: int, word_count: int | None) -> Tokenizer:
    """Train a tokenizer; arguments and errors as for `DialogueTokenizer.train`."""
    if vocab_size < _MIN_VOCABULARY:
        raise TokenizerError(f"A vocabulary of {vocab_size} is too small. Ask for at least {_MIN_VOCABULARY} tokens.")
    texts = [valid_text(text) for text in texts]
    counts = Counter(char for text in texts for char in text)
    # The characters are chosen here because the trainer breaks ties at its limit differently in every run.
    by_frequency = sorted(counts, key=lambda char: (-counts[char], char))
    max_characters = (vocab_size - len(_RESERVED)) * 5 // 8  # leaves room for words
    characters, rare = by_frequency[:max_characters], by_frequency[max_characters:]
    if word_count is not None:
        return _train_words(texts, characters, vocab_size, word_count)
    return _train_pairs(texts, rare, vocab_size, min_frequency)


def _train_pairs(texts: Sequence[str], rare: Sequence[str], vocab_size: int, min_frequency: int) -> Tokenizer:
    """Train byte-pair encoding over characters; the rare characters get no token."""
    without_rare = str.maketrans(dict.fromkeys(rare, "\n"))
    learner = Tokenizer(models.BPE(byte_fallback=True))
    learner.pre_tokenizer = pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=_RESERVED, show_progress=False
    )
    learner.train_from_iterator((text.translate(without_rare) for text in texts), trainer)
    learned = json.loads(learner.to_str())["model"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in learned["merges"])
    merges = [(left, right) for left, right in pairs]
    # Built anew so that only three tokens are special: the trainer would leave the byte tokens special too.
    return _finish(models.BPE(vocab=learned["vocab"], merges=merges, byte_fallback=True))


def _train_words(texts: Sequence[str], characters: Sequence[str], vocab_size: int, word_count: int) -> Tokenizer:
    """Build a vocabulary of characters and of words that occur at least `word_count` times, the most frequent first.

    This is the vocabulary of 苏剑林's chat model (kexue.fm/archives/7718: BERT's characters, and words with a count of
    10 or more). Words are those that jieba finds. The tokenizer cuts a text into the likeliest tokens by a unigram
    model, as jieba does without its HMM. So jieba is needed only for training.

    Raises:
        TokenizerError: jieba is not installed.
    """
    try:
        import jieba
    except ImportError:
        raise TokenizerError('A vocabulary of words needs jieba. Install it with pip install -e ".[words]".') from None
    jieba.setLogLevel("ERROR")
    split = pre_tokenizer().pre_tokenize_str
    counts: Counter[str] = Counter()
    for text in texts:
        for piece, _ in split(text):
            counts.update(jieba.cut(piece, HMM=False) if _HAN.match(piece) else [piece])
    known = set(characters)
    words = [word for word in counts if len(word) > 1 and counts[word] >= word_count and known.issuperset(word)]
    words = sorted(words, key=lambda word: (-counts[word], word))[: vocab_size - len(_RESERVED) - len(characters)]
    total = counts.total()
    scores = [(word, log(max(counts[word], 0.5) / total)) for word in (*characters, *words)]
    never = min(score for _, score in scores) - 10
    vocabulary = [*((name, never) for name in _RESERVED), *scores]
    return _finish(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))


def _finish(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    add_special_tokens(tokenizer)
    return tokenizer


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Return the splitter of `SPLIT`."""
    return pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")

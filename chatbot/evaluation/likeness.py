"""Likeness of a reply to what a person answered, over token vectors: WRD, greedy matching, embedding average."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chatbot.checkpoint.location import locate
from chatbot.similarity.distance import distance
from chatbot.similarity.token_vectors import VECTORS_FILE, TokenVectors
from chatbot.text.tokenizer import DialogueTokenizer


class Likeness:
    """Compares texts by the vectors of a folder, cut into tokens by the tokenizer that they were made for.

    One for all checkpoints of a report: numbers over different vectors cannot be compared.
    """

    def __init__(self, vectors: TokenVectors, tokenizer: DialogueTokenizer):
        self.vectors, self.tokenizer = vectors, tokenizer

    @classmethod
    def load(cls, folder: str | Path) -> Likeness:
        """Vectors and tokenizer of a checkpoint folder.

        Raises:
            CheckpointError, TokenizerError: A file is missing or damaged.
        """
        folder = locate(folder)
        tokenizer = DialogueTokenizer.load(folder)
        return cls(TokenVectors.load(folder, tokenizer.vocab_size), tokenizer)

    @staticmethod
    def is_in(folder: Path | None) -> bool:
        return folder is not None and (folder / VECTORS_FILE).is_file()

    def compare(self, reply: str, reference: str) -> dict[str, float]:
        """Three numbers, each at most 1, of two texts; a text without a known token is like no other.

        * wrd: 1 - Word Rotator's Distance (Yokoi et al., arXiv 2004.15003).
        * greedy_matching: mean over the tokens of the cosine to the nearest token of the other text, both ways
          (Rus & Lintean 2012; Liu et al., arXiv 1603.08023, section 3.2).
        * embedding_average: cosine of the means of the vectors (the same, section 3.2).
        """
        ids = [self.tokenizer.encode(text) for text in (reply, reference)]
        bags = [self.vectors.bag(tokens, "wrd") for tokens in ids]
        known = [[token for token in tokens if self.vectors.norms[token] > 0] for tokens in ids]
        if not known[0] or not known[1]:
            return {"wrd": 0.0, "greedy_matching": 0.0, "embedding_average": 0.0}
        directions = [self.vectors.vectors[t] / self.vectors.norms[t][:, None] for t in known]
        cosines = directions[0] @ directions[1].T
        means = [self.vectors.mean(tokens) for tokens in known]
        norms = [np.linalg.norm(mean) for mean in means]
        return {
            "wrd": 1 - distance(*bags, "wrd"),
            "greedy_matching": float((cosines.max(1).mean() + cosines.max(0).mean()) / 2),
            "embedding_average": float(means[0] @ means[1] / (norms[0] * norms[1])) if min(norms) > 0 else 0.0,
        }

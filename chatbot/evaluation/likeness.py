"""Likeness of a reply to the reply of a person, over token vectors: WRD, greedy matching, embedding average."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chatbot.checkpoint.location import locate
from chatbot.similarity.distance import distance
from chatbot.similarity.token_vectors import VECTORS_FILE, TokenVectors
from chatbot.text.tokenizer import DialogueTokenizer


class Likeness:
    """Comparison of texts by token vectors, with the tokenizer that the vectors belong to.

    All checkpoints of a report share the same vectors, because numbers over different vectors cannot be compared.
    """

    def __init__(self, vectors: TokenVectors, tokenizer: DialogueTokenizer):
        self.vectors, self.tokenizer = vectors, tokenizer

    @classmethod
    def load(cls, folder: str | Path) -> Likeness:
        """Load vectors and tokenizer of a checkpoint folder.

        Raises:
            CheckpointError, TokenizerError: A file is missing or damaged.
        """
        folder = locate(folder)
        tokenizer = DialogueTokenizer.load(folder)
        return cls(TokenVectors.load(folder, tokenizer.vocab_size), tokenizer)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a checkpoint folder has token vectors."""
        return (folder / VECTORS_FILE).is_file()

    def compare(self, reply: str, reference: str) -> dict[str, float]:
        """Return three numbers of at most 1; all are 0 if a text has no token with a vector.

        * wrd: 1 - Word Rotator's Distance (Yokoi et al., arXiv 2004.15003).
        * greedy_matching: mean over the tokens of the cosine to the nearest token of the other text, both ways
          (Rus & Lintean 2012; Liu et al., arXiv 1603.08023, section 3.2).
        * embedding_average: cosine of the mean vectors (Liu et al., section 3.2).
        """
        ids = [self.tokenizer.encode(text) for text in (reply, reference)]
        known = [[token for token in tokens if self.vectors.norms[token] > 0] for tokens in ids]
        if not known[0] or not known[1]:
            return {"wrd": 0.0, "greedy_matching": 0.0, "embedding_average": 0.0}
        reply_bag, reference_bag = (self.vectors.bag(tokens, "wrd") for tokens in ids)
        directions = [self.vectors.vectors[tokens] / self.vectors.norms[tokens][:, None] for tokens in known]
        cosines = directions[0] @ directions[1].T
        means = [self.vectors.mean(tokens) for tokens in known]
        norms = [np.linalg.norm(mean) for mean in means]
        return {
            "wrd": 1 - distance(reply_bag, reference_bag, "wrd"),
            "greedy_matching": float((cosines.max(1).mean() + cosines.max(0).mean()) / 2),
            "embedding_average": float(means[0] @ means[1] / (norms[0] * norms[1])) if min(norms) > 0 else 0.0,
        }

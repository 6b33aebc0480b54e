"""Token vectors of a checkpoint, and texts as bags of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chatbot.errors import CheckpointError, first_line
from chatbot.similarity.distance import Bag, Kind
from chatbot.storage import read_header

VECTORS_FILE = "vectors.safetensors"


class TokenVectors:
    """One vector per token.

    Args:
        vectors: Vectors `[V, D]`; zeros for a token without a vector.

    Attributes:
        vectors: Vectors, float32 `[V, D]`.
        norms: Euclidean norms, float64 `[V]`.
    """

    def __init__(self, vectors: np.ndarray):
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.norms = np.linalg.norm(self.vectors.astype(np.float64), axis=1)

    @classmethod
    def load(cls, folder: str | Path, vocab_size: int) -> TokenVectors:
        """Read vectors.safetensors of a checkpoint.

        Args:
            folder: Folder of the checkpoint.
            vocab_size: Number of tokens of its tokenizer.

        Raises:
            CheckpointError: The file is missing or damaged, or belongs to a tokenizer of another size.
        """
        from safetensors.numpy import load_file

        path = Path(folder) / VECTORS_FILE
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {VECTORS_FILE}. Train vectors with python -m chatbot.similarity.")
        try:
            if len(read_header(path).get("vectors", ())) != 2:
                raise ValueError("it has no table of vectors")
            vectors = load_file(path)["vectors"]
            if vectors.ndim != 2 or len(vectors) != vocab_size or not np.isfinite(vectors).all():
                raise ValueError(f"it does not hold finite vectors of {vocab_size} tokens")
            return cls(vectors)
        except Exception as error:  # safetensors raises its own kinds
            raise CheckpointError(f"{path} cannot be read ({first_line(error)}). Copy or train it again.") from None

    def bag(self, token_ids: Sequence[int], kind: Kind) -> Bag:
        """Return the tokens of a text that have a vector, with masses for optimal transport, which sum to 1."""
        ids, counts = np.unique(np.asarray(token_ids, np.int64), return_counts=True)
        has_vector = self.norms[ids] > 0
        ids, counts = ids[has_vector], counts[has_vector].astype(np.float64)
        points = self.vectors[ids].astype(np.float64)
        if kind == "wrd":
            counts *= self.norms[ids]
            points /= self.norms[ids, None]
        return Bag(points, counts / counts.sum() if len(ids) else counts)

    def mean(self, token_ids: Sequence[int]) -> np.ndarray:
        """Return the mean vector of a text, float64 `[D]`: "embedding average" (Liu et al., arXiv 1603.08023)."""
        if not len(token_ids):
            return np.zeros(self.vectors.shape[1])
        return self.vectors[np.asarray(token_ids, np.int64)].mean(0, dtype=np.float64)

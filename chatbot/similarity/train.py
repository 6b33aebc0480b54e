"""Vectors of tokens from the dialogues they stand in, for `chatbot.similarity.token_vectors`.

    python -m chatbot.similarity --data PREPARED_SET --checkpoint FOLDER

Positive pointwise mutual information of tokens within a window of a turn, with the context distribution smoothed (power
.75), and its truncated singular value decomposition: W = U S^1/2 (Levy, Goldberg & Dagan, TACL 2015, equations 3, 6
and 7; what skip-gram with negative sampling factors implicitly). Small, deterministic, and its norms say how much a
token tells: those of tokens that stand beside anything are small, which is what WRD takes for importance.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from chatbot.errors import XianliaoError, explain_faults
from chatbot.similarity.token_vectors import VECTORS_FILE

WINDOW = 5
SMOOTHING = 0.75
MOST_TOKENS = 20_000_000
"""Of the data, in the order in which they come: more change little."""


class VectorsError(XianliaoError):
    """Data that no vectors can be made of."""


def train_vectors(turns: Iterable[Sequence[int]], vocab_size: int, dimensions: int = 64, seed: int = 0) -> np.ndarray:
    """float32 `[V, dimensions]`; a token that was not seen has zeros.

    Args:
        turns: Token ids of each turn.
        vocab_size: V.
        dimensions: Of a vector; at most the number of different tokens less one.
        seed: Of the start of the decomposition.

    Raises:
        VectorsError: There are too few different tokens.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import svds

    counts = _cooccurrences(turns, vocab_size)
    totals = np.asarray(counts.sum(1)).ravel()
    seen = int((totals > 0).sum())
    if seen < 3:
        raise VectorsError("The data has too few different tokens for vectors; give more dialogues.")
    smoothed = totals**SMOOTHING
    smoothed /= smoothed.sum()
    pairs = counts.tocoo()
    information = np.log(pairs.data / totals[pairs.row] / smoothed[pairs.col])
    positive = information > 0
    kept = (information[positive], (pairs.row[positive], pairs.col[positive]))
    matrix = coo_matrix(kept, shape=(vocab_size, vocab_size), dtype=np.float64).tocsr()
    start = np.random.default_rng(seed).standard_normal(vocab_size)
    left, values, _ = svds(matrix, k=min(dimensions, seen - 1, vocab_size - 1), v0=start)
    order = np.argsort(-values)
    left, values = left[:, order], values[order]
    left *= np.sign(left[np.abs(left).argmax(0), np.arange(left.shape[1])])  # the sign is arbitrary: fix it
    vectors = np.zeros((vocab_size, dimensions), np.float32)
    vectors[:, : len(values)] = left * np.sqrt(values)
    vectors[totals == 0] = 0
    return vectors


def _cooccurrences(turns: Iterable[Sequence[int]], vocab_size: int):
    """How often two tokens stand within the window in a turn, csr `[V, V]`, symmetric."""
    from scipy.sparse import coo_matrix, csr_matrix

    total = csr_matrix((vocab_size, vocab_size), dtype=np.float64)
    for ids, owner in _parts(turns):
        rows, columns = [], []
        for gap in range(1, WINDOW + 1):
            together = owner[gap:] == owner[:-gap]
            rows.append(ids[gap:][together])
            columns.append(ids[:-gap][together])
        row, column = np.concatenate(rows), np.concatenate(columns)
        total += coo_matrix((np.ones(len(row)), (row, column)), shape=total.shape).tocsr()
    return total + total.T


def _parts(turns: Iterable[Sequence[int]], tokens: int = 1_000_000) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Ids of many turns after each other, with the number of the turn each is of."""
    ids: list[int] = []
    lengths: list[int] = []
    for turn in turns:
        ids += turn
        lengths.append(len(turn))
        if len(ids) >= tokens:
            yield np.array(ids), np.repeat(np.arange(len(lengths)), lengths)
            ids, lengths = [], []
    yield np.array(ids, np.int64), np.repeat(np.arange(len(lengths)), lengths)


def _turns(data: str) -> Iterable[list[int]]:
    from chatbot.text.prepared_set import load_split

    room = MOST_TOKENS
    for row in load_split(data, "train"):
        for turn in row["turns"]:
            yield turn
            room -= len(turn)
        if room <= 0:
            return


@explain_faults
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m chatbot.similarity", description="Make vectors of tokens for WMD and WRD."
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="a prepared set with the checkpoint's tokenizer")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help=f"where {VECTORS_FILE} goes")
    parser.add_argument("--dimensions", type=int, default=64, help="of a vector (default %(default)s)")
    args = parser.parse_args(argv)
    from safetensors.numpy import save_file

    from chatbot.text.tokenizer import DialogueTokenizer

    tokenizer, other = DialogueTokenizer.load(args.data), DialogueTokenizer.load(args.checkpoint)
    if tokenizer.to_json() != other.to_json():
        raise VectorsError(
            f"{args.data} was prepared with another tokenizer than {args.checkpoint}'s; prepare it with that."
        )
    vectors = train_vectors(_turns(args.data), tokenizer.vocab_size, args.dimensions)
    path = Path(args.checkpoint) / VECTORS_FILE
    save_file({"vectors": vectors.astype(np.float16)}, path)
    path.chmod(0o644)
    print(f"{path}: {int((np.abs(vectors).sum(1) > 0).sum())} tokens, {args.dimensions} dimensions")
    return 0

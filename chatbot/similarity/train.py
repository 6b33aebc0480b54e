"""Training token vectors for `chatbot.similarity.token_vectors` from the dialogues that the tokens occur in.

    python -m chatbot.similarity --data PREPARED_SET --checkpoint FOLDER

The vectors factor the positive pointwise mutual information of tokens within a window of a turn,

    PPMI_wc = max(0, log p(w, c) / (p(w) p_s(c))),     p_s(c) proportional to count(c)^.75,

by its truncated singular value decomposition U S V^T: W = U S^1/2 (Levy, Goldberg & Dagan, TACL 2015, equations 3, 6
and 7; skip-gram with negative sampling factors the same matrix implicitly). The method is simple and deterministic.
Tokens that occur beside almost any token carry little meaning. They get small norms, and WRD uses the norm as
importance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chatbot.errors import XianliaoError, explain_faults
from chatbot.language.parser import Parser
from chatbot.language.translation import translate
from chatbot.similarity.token_vectors import VECTORS_FILE

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WINDOW = 5
SMOOTHING = 0.75
MAX_TOKENS = 20_000_000
"""Number of tokens used from the beginning of the data; more tokens change the vectors little."""
_PART_TOKENS = 1_000_000


class VectorsError(XianliaoError):
    """Vectors cannot be trained on the data."""


def train_vectors(turns: Iterable[Sequence[int]], vocab_size: int, dimensions: int = 64, seed: int = 0) -> np.ndarray:
    """Train a vector for each token.

    Args:
        turns: Token ids of each turn.
        vocab_size: Number of tokens V.
        dimensions: Length of a vector. With few different tokens the last components are zeros.
        seed: Seed of the start vector of the decomposition.

    Returns:
        Vectors, float32 `[V, dimensions]`; zeros for a token that does not occur.

    Raises:
        VectorsError: The data has too few different tokens.
    """
    from scipy.sparse.linalg import svds

    counts = _count_pairs(turns, vocab_size)
    totals = np.asarray(counts.sum(1)).ravel()
    seen = int((totals > 0).sum())
    if seen < 3:
        raise VectorsError("The data has too few different tokens for vectors. Give more dialogues.")
    start = np.random.default_rng(seed).standard_normal(vocab_size)
    left, values, _ = svds(_ppmi(counts, totals), k=min(dimensions, seen - 1, vocab_size - 1), v0=start)
    order = np.argsort(-values)
    left, values = left[:, order], values[order]
    left *= np.sign(left[np.abs(left).argmax(0), np.arange(left.shape[1])])  # make the sign definite
    vectors = np.zeros((vocab_size, dimensions), np.float32)
    vectors[:, : len(values)] = left * np.sqrt(values)
    vectors[totals == 0] = 0
    return vectors


def _ppmi(counts: csr_matrix, totals: np.ndarray) -> csr_matrix:
    """Return the positive pointwise mutual information of the module docstring, csr `[V, V]`."""
    from scipy.sparse import coo_matrix

    smoothed = totals**SMOOTHING
    smoothed /= smoothed.sum()
    pairs = counts.tocoo()
    information = np.log(pairs.data / totals[pairs.row] / smoothed[pairs.col])
    positive = information > 0
    entries = (information[positive], (pairs.row[positive], pairs.col[positive]))
    return coo_matrix(entries, shape=counts.shape, dtype=np.float64).tocsr()


def _count_pairs(turns: Iterable[Sequence[int]], vocab_size: int) -> csr_matrix:
    """Return how often two tokens occur within the window of a turn, csr `[V, V]`, symmetric."""
    from scipy.sparse import coo_matrix, csr_matrix

    total = csr_matrix((vocab_size, vocab_size), dtype=np.float64)
    for ids, turn_numbers in _parts(turns):
        rows, columns = [], []
        for gap in range(1, WINDOW + 1):
            is_one_turn = turn_numbers[gap:] == turn_numbers[:-gap]
            rows.append(ids[gap:][is_one_turn])
            columns.append(ids[:-gap][is_one_turn])
        row, column = np.concatenate(rows), np.concatenate(columns)
        total += coo_matrix((np.ones(len(row)), (row, column)), shape=total.shape).tocsr()
    return total + total.T


def _parts(turns: Iterable[Sequence[int]], part_tokens: int = _PART_TOKENS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the joined ids of many turns, and for each id the index of its turn; both int64 `[tokens]`."""
    ids: list[int] = []
    lengths: list[int] = []
    for turn in turns:
        ids += turn
        lengths.append(len(turn))
        if len(ids) >= part_tokens:
            yield np.array(ids, np.int64), np.repeat(np.arange(len(lengths)), lengths)
            ids, lengths = [], []
    yield np.array(ids, np.int64), np.repeat(np.arange(len(lengths)), lengths)


def _turns(data: str) -> Iterator[list[int]]:
    """Yield turns of the train split until they have `MAX_TOKENS` tokens or slightly more."""
    from chatbot.text.prepared_set import load_split

    tokens = 0
    for row in load_split(data, "train"):
        for turn in row["turns"]:
            yield turn
            tokens += len(turn)
        if tokens >= MAX_TOKENS:
            return


@explain_faults
def main(argv: list[str] | None = None) -> int:
    """Train vectors for a checkpoint; `argv` None takes the command line of the process."""
    parser = Parser(
        prog="python -m chatbot.similarity", description="Train token vectors for WMD and WRD on a prepared set."
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="prepared set, made with the tokenizer of the checkpoint"
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help=f"checkpoint folder; {VECTORS_FILE} is written to it"
    )
    parser.add_argument(
        "--dimensions", type=int, default=64, metavar="N", help="length of a vector (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    from safetensors.numpy import save_file

    from chatbot.text.tokenizer import DialogueTokenizer

    tokenizer, other = DialogueTokenizer.load(args.data), DialogueTokenizer.load(args.checkpoint)
    if tokenizer.to_json() != other.to_json():
        raise VectorsError(
            f"{args.data} was prepared with a different tokenizer from that of {args.checkpoint}."
            f" Prepare it with --tokenizer {args.checkpoint}."
        )
    vectors = train_vectors(_turns(args.data), tokenizer.vocab_size, args.dimensions)
    path = Path(args.checkpoint) / VECTORS_FILE
    save_file({"vectors": vectors.astype(np.float16)}, path)
    path.chmod(0o644)
    print(translate(f"{path}: {int((np.abs(vectors).sum(1) > 0).sum())} tokens, {args.dimensions} dimensions"))
    return 0

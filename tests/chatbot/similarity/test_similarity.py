from __future__ import annotations

import json
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.errors import CheckpointError
from chatbot.similarity import train as vector_training
from chatbot.similarity.distance import Bag, costs, distance, relaxed_distance
from chatbot.similarity.token_vectors import VECTORS_FILE, TokenVectors
from chatbot.similarity.train import VectorsError, train_vectors
from chatbot.text.dialogue import clean_turn
from chatbot.text.tokenizer import DialogueTokenizer
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "data" / "LCCC-base_valid.json"
PAIRS = ROOT / "tests" / "chatbot" / "similarity" / "paraphrases.tsv"
TOKENS = 60
KINDS = ("wmd", "wrd")


@pytest.fixture(scope="module")
def space() -> TokenVectors:
    """Random vectors of many lengths; token 0 has none."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((TOKENS, 8)) * random.uniform(0.2, 3, (TOKENS, 1))
    vectors[0] = 0
    return TokenVectors(vectors)


TEXT = st.lists(st.integers(1, TOKENS - 1), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@given(a=TEXT, b=TEXT)
@settings(deadline=None, max_examples=40)
def test_symmetric_and_zero_for_equal_texts(space, kind, a, b):
    left, right = space.bag(a, kind), space.bag(b, kind)
    forward = distance(left, right, kind)
    assert forward == pytest.approx(distance(right, left, kind), abs=1e-9)
    assert distance(left, left, kind) == pytest.approx(0, abs=1e-6)
    if kind == "wrd":
        assert -1e-9 <= forward <= 2 + 1e-9


@pytest.mark.parametrize("kind", KINDS)
@given(a=TEXT, b=TEXT)
@settings(deadline=None, max_examples=40)
def test_the_relaxed_distance_is_a_lower_bound(space, kind, a, b):
    left, right = space.bag(a, kind), space.bag(b, kind)
    relaxed, exact = relaxed_distance(left, right, kind), distance(left, right, kind)
    assert relaxed <= exact + 1e-9
    assert relaxed == pytest.approx(relaxed_distance(right, left, kind))
    if len(left) == 1 or len(right) == 1:  # there is only one plan
        assert relaxed == pytest.approx(exact)


@given(TEXT, TEXT, TEXT)
@settings(deadline=None, max_examples=40)
def test_wmd_keeps_the_triangle_inequality(space, a, b, c):
    first, second, third = (space.bag(text, "wmd") for text in (a, b, c))
    assert distance(first, third, "wmd") <= distance(first, second, "wmd") + distance(second, third, "wmd") + 1e-9


def test_wrd_does_not_keep_the_triangle_inequality():
    angles = np.deg2rad([0, 45, 90])
    space = TokenVectors(np.stack([np.cos(angles), np.sin(angles)], 1))
    first, second, third = (space.bag([token], "wrd") for token in range(3))
    detour = distance(first, second, "wrd") + distance(second, third, "wrd")
    assert distance(first, third, "wrd") == pytest.approx(1)
    assert detour == pytest.approx(2 - 2**0.5)
    assert detour < 1


def test_the_distance_is_the_sum_over_the_best_plan():
    """Two tokens against two at right angles: half of the mass goes each way, by hand."""
    space = TokenVectors(np.array([[0, 0.0], [3, 0], [0, 4], [3, 4]]))
    assert space.norms[0] == 0
    wmd = distance(space.bag([1, 2], "wmd"), space.bag([3, 2], "wmd"), "wmd")
    assert wmd == pytest.approx(0.5 * 4)  # 1 -> 3 over 4, 2 stays
    wrd = distance(space.bag([1], "wrd"), space.bag([2, 3], "wrd"), "wrd")
    assert wrd == pytest.approx(4 / 9 * 1 + 5 / 9 * (1 - 3 / 5))


def test_counts_are_masses_and_tokens_without_a_vector_say_nothing(space):
    assert space.bag([5, 5, 7], "wmd").masses.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert distance(space.bag([5, 7, 0], "wmd"), space.bag([5, 7], "wmd"), "wmd") == pytest.approx(0, abs=1e-6)
    empty, other = space.bag([0], "wrd"), space.bag([4], "wrd")
    assert distance(empty, space.bag([], "wrd"), "wrd") == 0
    assert distance(empty, other, "wrd") == distance(other, empty, "wrd") == 1


def test_a_thousand_pairs_take_less_than_two_seconds(space):
    random = np.random.default_rng(2)
    texts = [random.integers(1, TOKENS, random.integers(1, 21)).tolist() for _ in range(2000)]
    distance(space.bag(texts[0], "wrd"), space.bag(texts[1], "wrd"), "wrd")  # imports the solver
    start = time.process_time()
    for left, right in zip(texts[::2], texts[1::2], strict=True):
        distance(space.bag(left, "wrd"), space.bag(right, "wrd"), "wrd")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
def test_distances_do_not_depend_on_a_common_offset(offset):
    """Vectors that differ by 1e-3 far from the origin are not equal, and two groups of them far apart keep theirs."""
    random = np.random.default_rng(3)
    points = 1e-3 * random.standard_normal((20, 8)) + offset
    points[10:, 0] += 3 * offset
    a, b = Bag(points[::2], np.full(10, 1 / 10)), Bag(points, np.full(20, 1 / 20))
    exact = np.sqrt(((a.points[:, None] - b.points) ** 2).sum(-1))
    np.testing.assert_allclose(costs(a, b, "wmd"), exact, rtol=1e-9, atol=0)
    assert (costs(a, b, "wmd") == 0).sum() == len(a)  # a token and itself
    assert distance(a, b, "wmd") > 0


def test_costs_are_distances_and_cosines(space):
    a, b = space.bag([3, 4], "wmd"), space.bag([5, 6, 7], "wmd")
    expected = np.linalg.norm(a.points[:, None] - b.points, axis=2)
    assert costs(a, b, "wmd") == pytest.approx(expected)
    a, b = space.bag([3], "wrd"), space.bag([3, 4], "wrd")
    assert costs(a, b, "wrd")[0, 0] == pytest.approx(0, abs=1e-6)


# --- vectors of a corpus ---


def test_tokens_in_like_company_have_like_vectors_and_common_ones_short_ones():
    random = np.random.default_rng(0)
    turns = [[random.choice([1, 2]), 9, random.choice([3, 4]), 9] for _ in range(400)]
    turns += [[random.choice([5, 6]), 9, random.choice([7, 8]), 9] for _ in range(400)]
    vectors = TokenVectors(train_vectors([[int(token) for token in turn] for turn in turns], 12, 4))
    unit = vectors.vectors / np.maximum(vectors.norms, 1e-9)[:, None]
    assert unit[1] @ unit[2] > 0.9 > 0.5 > unit[1] @ unit[5]
    assert vectors.norms[9] < 0.5 * vectors.norms[1:9].min()
    assert not vectors.norms[[0, 10, 11]].any()


def test_vectors_are_the_same_every_time_and_refuse_too_little():
    turns = [[1, 2, 3], [2, 3, 4], [4, 1]] * 5
    assert (train_vectors(turns, 6, 3) == train_vectors(turns, 6, 3)).all()
    with pytest.raises(VectorsError, match="too few different tokens"):
        train_vectors([[1, 1]], 6, 3)


def test_parts_do_not_change_what_is_counted(monkeypatch):
    turns = [[1, 2, 3, 1], [2, 5], [3], []] * 40
    whole = vector_training._count_pairs(turns, 6).toarray()
    parts = vector_training._parts
    monkeypatch.setattr(vector_training, "_parts", lambda turns: parts(turns, part_tokens=7))
    assert (vector_training._count_pairs(turns, 6).toarray() == whole).all()
    assert whole[1, 1] == 2 * 40
    assert whole[1, 5] == 0


def test_the_command_puts_them_into_a_checkpoint(prepared, tmp_path, capsys):
    DialogueTokenizer.load(prepared).save(tmp_path)
    call = ["--data", str(prepared), "--checkpoint", str(tmp_path), "--dimensions", "16"]
    assert vector_training.main(call) == 0
    loaded = TokenVectors.load(tmp_path, DialogueTokenizer.load(tmp_path).vocab_size)
    assert loaded.vectors.shape[1] == 16
    assert (loaded.norms > 0).sum() > 100
    (tmp_path / VECTORS_FILE).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cannot be read"):
        TokenVectors.load(tmp_path, loaded.vectors.shape[0])
    (tmp_path / VECTORS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"chatbot\.similarity"):
        TokenVectors.load(tmp_path, loaded.vectors.shape[0])
    DialogueTokenizer.train(["别的"] * 9, 400).save(tmp_path)
    assert vector_training.main(call) == 1
    assert "was prepared with a different tokenizer from that of" in capsys.readouterr().err


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of (1, 0) pairs in the right order, ties half."""
    ones, zeros = scores[labels == 1], scores[labels == 0]
    return float((ones[:, None] > zeros).mean() + (ones[:, None] == zeros).mean() / 2)


def overlap(a: str, b: str) -> float:
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="LCCC is not at hand")
def test_wrd_tells_paraphrases_better_than_shared_characters_do():
    """100 pairs written for this; and the paraphrases against strangers, which shared characters do tell apart."""
    tokenizer = DialogueTokenizer.load(ROOT / "checkpoints" / "default")
    turns = [clean_turn(turn) for turns in json.loads(SHARED.read_text(encoding="utf-8")) for turn in turns]
    space = TokenVectors(train_vectors(tokenizer.encode_batch(turns), tokenizer.vocab_size, 64))
    rows = [line.split("\t") for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    pairs = [(int(label), a, b) for label, a, b in rows]
    assert Counter(label for label, _, _ in pairs) == {1: 50, 0: 50}
    same = [(a, b) for label, a, b in pairs if label]
    strangers = [(0, same[at][0], same[(at + 17) % 50][1]) for at in range(50)]
    for name, chosen in (("written", pairs), ("strangers", [(1, a, b) for a, b in same] + strangers)):
        labels = np.array([label for label, _, _ in chosen])
        bags = [[space.bag(tokenizer.encode(text), "wrd") for text in (a, b)] for _, a, b in chosen]
        rotated = area_under_curve(np.array([-distance(a, b, "wrd") for a, b in bags]), labels)
        shared = area_under_curve(np.array([overlap(a, b) for _, a, b in chosen]), labels)
        assert rotated >= shared, name

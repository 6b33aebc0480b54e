from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from chatbot.evaluation import metrics
from chatbot.evaluation.ngram import END_OF_TURN, WittenBell, to_units
from chatbot.model.scoring import score_dialogues
from chatbot.text.dialogue import count_units


@pytest.fixture
def ids(tokenizer, dialogues):
    return [[tokenizer.encode(turn) for turn in turns] for turns in dialogues[:30]]


@torch.no_grad()
def test_nats_are_the_sum_over_every_turn_with_full_history(model, layout, ids):
    by_hand = []
    for turns in ids[:5]:
        sample = layout.lay_out(turns)
        logits = model(torch.tensor([sample.input_ids]), token_type_ids=torch.tensor([sample.speaker_ids])).logits[0]
        log_probs = logits.double().log_softmax(-1)
        by_hand.append(-sum(log_probs[t - 1, sample.input_ids[t]].item() for t in range(1, len(sample.input_ids))))
    assert score_dialogues(model, layout, ids[:5]) == pytest.approx(by_hand, rel=1e-5)


def test_nats_do_not_depend_on_packing(model, layout, ids):
    alone = score_dialogues(model, layout, ids, row_tokens=1)
    assert score_dialogues(model, layout, ids, row_tokens=300) == pytest.approx(alone, rel=1e-5)


def test_scoring_leaves_the_mode_of_the_model(model, layout, ids):
    model.train()
    score_dialogues(model, layout, ids[:2])
    assert model.training
    model.eval()


def test_witten_bell_by_hand():
    model = WittenBell(2, [["ab", "a"]])  # units a b | a |, with | the end of turn
    uniform = 1 / 4  # a, b, |, and one for everything else
    unigram_a = (2 + 3 * uniform) / (5 + 3)
    assert model.probability("a", []) == pytest.approx(unigram_a)
    after_end = (1 + 1 * unigram_a) / (1 + 1)  # the end of turn was followed by a, once
    assert model.probability("a", [END_OF_TURN]) == pytest.approx(after_end)
    assert model.probability("a", ["never seen"]) == pytest.approx(unigram_a)


def test_witten_bell_sums_to_one_and_learns(dialogues):
    train, test = dialogues[:180], dialogues[180:]
    model = WittenBell(3, train)
    vocabulary = {unit for turns in train for unit in to_units(turns)}
    for context in ([], ["你"], ["你", "好"], [END_OF_TURN, "我"]):
        total = sum(model.probability(unit, context) for unit in vocabulary) + model.probability("\u0000", context)
        assert total == pytest.approx(1)
    unigram = WittenBell(1, train)
    assert model.nats_per_unit(test) < unigram.nats_per_unit(test) < math.log(len(vocabulary) + 1)
    counts = Counter(unit for turns in train for unit in to_units(turns))
    most = counts.most_common(1)[0][0]
    assert unigram.probability(most, []) == pytest.approx(counts[most] / counts.total(), rel=0.2)


def test_witten_bell_counts_the_same_units_as_the_models(dialogues):
    assert sum(len(to_units(turns)) for turns in dialogues) == sum(count_units(turns) for turns in dialogues)


def test_text_metrics():
    assert metrics.distinct_share(metrics.ngrams("abab", 1)) == 0.5
    assert metrics.distinct_share(metrics.ngrams("abc", 2)) == 1
    assert metrics.distinct_share([]) == 0
    assert metrics.repetition_n("abcabcabc", 4) == pytest.approx(1 - 3 / 6)
    assert metrics.repetition_n("abc", 4) == 0
    assert metrics.unfinished_share([3, 8, 8], [True, True, False], 8) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("哈哈哈哈哈", False),
        ("哈哈哈哈哈哈", True),
        ("好的好的好的", True),
        ("好的好的", False),
        ("我不知道我不知道", False),
        ("我不知道我不知道我不知道", True),
        ("哈嘿哈嘿，哈嘿哈嘿哈", True),
        ("", False),
    ],
)
def test_what_is_repetitive(reply, expected):
    assert metrics.is_repetitive(reply) is expected


@pytest.mark.parametrize(
    ("reply", "message", "expected"),
    [
        ("你吃饭了吗", "你吃饭了吗", True),
        ("你吃饭了没", "你吃饭了吗", True),
        ("吃了，你呢", "你吃饭了吗", False),
        ("晚安", "晚安", False),
        ("你吃饭了吗", "我昨天问你你吃饭了吗你没有回我", False),
        ("你好呀呀", "", False),
    ],
)
def test_what_is_an_echo(reply, message, expected):
    assert metrics.is_echo(reply, message) is expected


def test_entropy_of_ngrams():
    expected = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert metrics.entropy(metrics.ngrams("abab", 2)) == pytest.approx(expected)
    assert metrics.entropy(metrics.ngrams("abcd", 4) * 9) == 0
    assert metrics.entropy([]) == 0

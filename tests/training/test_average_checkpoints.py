from __future__ import annotations

import pytest
import torch

from chatbot.checkpoint.folder import TRAINING, load_model, save
from chatbot.errors import CheckpointError
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json
from tests.conftest import tiny_config
from training.average_checkpoints import average, main, without_repeats


@pytest.fixture
def two(tokenizer, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save(tmp_path / str(seed), XianliaoForCausalLM(tiny_config(tokenizer)), tokenizer, {}, {"step": seed})
    return tmp_path


def test_the_weights_are_the_weighted_mean(two):
    main([str(two / "mean"), "3", str(two / "0"), "1", str(two / "1")])
    first, second, mean = (load_model(two / name).state_dict() for name in ("0", "1", "mean"))
    for name in mean:
        torch.testing.assert_close(mean[name], 0.75 * first[name] + 0.25 * second[name])
    assert [part["share"] for part in read_json(two / "mean" / TRAINING)["mean_of"]] == [0.75, 0.25]


def test_an_ancestor_is_told_once():
    old = {"settings": {"seed": 0}, "step": 9, "data": [{"folder": "chat"}]}
    new = {"settings": {"seed": 1}, "initialised_from": old}
    first, second, third = without_repeats(
        [{"share": 0.5, **new}, {"share": 0.3, **old}, {"share": 0.2, "mean_of": [new]}]
    )
    full_record = first["initialised_from"]
    assert {name: value for name, value in full_record.items() if name != "id"} == old
    assert second == {"share": 0.3, "same_as": full_record["id"]}
    assert third["mean_of"] == [{"same_as": first["id"]}]
    again = without_repeats([first, second])  # records that are already shortened
    assert again == [first, second]


def test_what_does_not_fit_is_refused(two, tokenizer):
    save(two / "wide", XianliaoForCausalLM(tiny_config(tokenizer, hidden_size=64)), tokenizer, {}, {})
    for sources in ([(1, two / "0"), (1, two / "wide")], [(0, two / "0")], []):
        with pytest.raises(CheckpointError):
            average(two / "mean", sources)
    assert not (two / "mean").exists()
    with pytest.raises(SystemExit):
        main([str(two / "mean"), "0.5", str(two / "0"), "0.5"])

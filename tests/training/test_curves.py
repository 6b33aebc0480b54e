"""The picture of the curves is drawn whatever a run has measured."""

from __future__ import annotations

import json

import pytest

from training.reporting.curves import CURVES, draw_curves
from training.state.run_folder import METRICS

STEP = {"loss": 3.0, "gradient_norm": 0.5, "learning_rate": 1e-3}
RUNS = {
    "no step": [],
    "one step": [{"step": 1, **STEP}],
    "many steps": [{"step": step, **STEP, "valid_nats_per_unit": 5 / step} for step in range(1, 60)],
    "validation alone": [{"step": 0, "valid_nats_per_unit": 7.0}],
    "no rate": [{"step": 1, **STEP, "learning_rate": 0.0}],
    "a large loss": [{"step": 1, **STEP, "loss": 1e30, "gradient_norm": 1e30}, {"step": 2, **STEP}],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_picture_is_drawn(name, tmp_path):
    (tmp_path / METRICS).write_text("".join(json.dumps(entry) + "\n" for entry in RUNS[name]), encoding="utf-8")
    draw_curves(tmp_path, **({} if name == "one step" else {"unigram": 6.5, "before": 7.0, "tokens_per_unit": 0.6}))
    picture = (tmp_path / CURVES).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000

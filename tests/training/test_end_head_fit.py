"""The fit of a new end head: a pretrained model keeps its quality when its termination changes."""

from __future__ import annotations

import pytest
import torch

from chatbot.model.network import XianliaoForCausalLM
from tests.conftest import tiny_config
from training.end_head import fit_end_head, with_termination


@pytest.mark.parametrize("kind", ["st", "nmst"])
def test_a_pretrained_model_is_not_wrecked(tokenizer, layout, kind):
    """A head fitted on a few dialogues costs little where the softmax's own end was learnt; an unfitted ST costs much."""
    torch.manual_seed(0)
    trained = XianliaoForCausalLM(tiny_config(tokenizer)).train()
    turns = [[[40 + (i + j) % 30 for j in range(1 + (i + k) % 5)] for k in range(4)] for i in range(24)]
    samples = [layout.lay_out(dialogue) for dialogue in turns]
    width = max(len(s.input_ids) for s in samples)
    rows = [(s.input_ids + [0] * (width - len(s.input_ids))) for s in samples]
    labels = [s.labels + [-100] * (width - len(s.input_ids)) for s in samples]
    batch = {"input_ids": torch.tensor(rows), "labels": torch.tensor(labels)}
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        trained(**batch).loss.backward()
        optimizer.step()
    trained.eval()
    before = trained(**batch).loss.item()
    other = with_termination(trained, kind, 1e-3, 0).eval()
    unfitted = other(**batch).loss.item()
    fit_end_head(other, [batch])
    fitted = other(**batch).loss.item()
    assert fitted < unfitted
    assert fitted < before + (0.1 if kind == "nmst" else 0.35)
    again = with_termination(other, "softmax", 1e-3, 0).eval()
    assert again(**batch).loss.item() == pytest.approx(before, abs=1e-6)
    assert again.end_head is None


def test_a_model_without_a_head_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no end head"):
        fit_end_head(XianliaoForCausalLM(tiny_config(tokenizer)), [])

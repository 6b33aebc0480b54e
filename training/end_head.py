"""Change of a model's `termination`, and the fit of a new end head before training (`chatbot.model.end_head`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from chatbot.model.config import XianliaoConfig
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.layouts import IGNORED_LABEL

WEIGHT_DECAY = 1e-4
"""Penalty per squared weight in the fit: on separable data, the weights would grow without limit."""


def with_termination(model: XianliaoForCausalLM, kind: str, epsilon: float, delay: int) -> XianliaoForCausalLM:
    """Return a copy of the model with another `termination`.

    The weights are kept, except the weights of a head of another kind: then the new head is initialised and needs
    `fit_end_head`.

    Args:
        model: Not changed.
        kind: softmax, st or nmst.
        epsilon: `termination_epsilon` of the config.
        delay: `termination_delay` of the config, in tokens.
    """
    settings = {"termination": kind, "termination_epsilon": epsilon, "termination_delay": delay}
    other = XianliaoForCausalLM(XianliaoConfig.from_dict({**model.config.to_dict(), **settings}))
    same = kind == model.config.termination
    weights = {name: t for name, t in model.state_dict().items() if same or not name.startswith("end_head.")}
    other.load_state_dict(weights, strict=False)
    other.to(model.device, model.dtype)  # type: ignore[arg-type]  # transformers declares .to without its self
    return other.train(model.training)


def fit_end_head(model: XianliaoForCausalLM, batches: Sequence[dict[str, torch.Tensor]], max_steps: int = 40) -> None:
    """Fit only the end head to dialogues, so that a pretrained model ends its turns where its softmax ended them.

    The hidden states do not change. The head has only D + 1 parameters (weights and bias), so L-BFGS needs seconds.

    Args:
        model: Has an `end_head`; on any device.
        batches: Model inputs with labels, a few thousand tokens in all.
        max_steps: Maximum number of L-BFGS steps.

    Raises:
        ValueError: The model has no end head.
    """
    head, end_id, was_training = model.end_head, model.config.eos_token_id, model.training
    if head is None:
        raise ValueError("This model has no end head. Change its termination to st or nmst first.")
    model.eval()
    fixed = []
    for batch in batches:
        with torch.no_grad():
            x, tokens = model.embed_and_mix(
                batch["input_ids"],
                attention_mask=batch.get("attention_mask"),
                token_type_ids=batch.get("token_type_ids"),
                segment_ids=batch.get("segment_ids"),
            )
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
        fixed.append((x, batch["input_ids"], tokens, targets))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=max_steps, line_search_fn="strong_wolfe")

    def mean_nats() -> torch.Tensor:
        optimizer.zero_grad()
        sums, count = [], 0
        for x, ids, tokens, targets in fixed:
            end = head(x, ids, tokens, None)
            counted = targets != IGNORED_LABEL
            sums.append(-torch.where(targets == end_id, end.log_end, end.log_continue)[counted].sum())
            count += int(counted.sum())
        loss = torch.stack(sums).sum() / count + WEIGHT_DECAY * head.weight.float().square().sum()
        loss.backward()
        return loss

    optimizer.step(mean_nats)
    optimizer.zero_grad(set_to_none=True)
    model.train(was_training)

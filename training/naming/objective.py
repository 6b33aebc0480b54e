"""Loss that teaches a bot its name: the bot learns the answers and keeps its distribution in all other dialogues.

    loss = (1 / N) (sum_answers -log q(x) + sum_kept KL(p || q))

q is the model, p the bot before the training, N the number of targets of the batch. In dialogues to keep, the target is
the whole distribution p instead of the one token that was written (Li and Hoiem 2016, arXiv:1606.09282): at the first step
the gradient of this loss is 0, while the gradient of the written token is mostly noise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import nn

from chatbot.checkpoint.folder import load_model
from chatbot.model.precision import at_least_float
from chatbot.text.layouts import IGNORED_LABEL
from training.optim.regularizers import Objective, divergence, sum_by_dialogue
from training.run import Run
from training.settings import SettingsError
from training.stage import Stage
from training.step import DivergedError
from training.trained_model import TrainedModel


class KeepingObjective(Objective):
    """Nats of the turns to learn plus the divergence from the bot before the training in the others (`kept_targets`).

    Args:
        before: The model before the training.
        others: As for `Objective`.
    """

    def __init__(self, before: nn.Module, *others):
        super().__init__(*others)
        self.before = before

    def backward(
        self,
        batch: dict[str, torch.Tensor],
        items: float,
        run_backward: Callable[[torch.Tensor], None],
        no_sync: Callable[[], AbstractContextManager] = nullcontext,
    ) -> tuple[float, float]:
        """Add the gradient of a micro-batch; arguments as for `Objective.backward`.

        Returns:
            Nats of the turns to learn, and the divergence in the dialogues to keep, both divided by `items`.
        """
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
        is_kept = kept_targets(batch)
        learnt = (targets != IGNORED_LABEL) & ~is_kept
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = self._run(inputs).logits
        assert logits is not None
        loss = F.cross_entropy(at_least_float(logits[learnt]), targets[learnt], reduction="sum") / items
        with torch.no_grad():
            fixed = at_least_float(self.before(**inputs).logits[is_kept]).log_softmax(-1)
        extra = divergence(fixed, at_least_float(logits[is_kept]).log_softmax(-1)) / items
        run_backward(loss + extra)
        return loss.item(), extra.item()


def keeping_objective(trained: TrainedModel, stage: Stage) -> KeepingObjective:
    """Return the objective of a stage, with the bot before the training as it is in `--init`."""
    before = load_model(stage.settings.init or "default", str(trained.accelerator.device)).requires_grad_(False)
    return KeepingObjective(before, trained.model, trained.inner, stage.settings.regularization)


def kept_targets(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return which positions predict a token of a dialogue to keep: one whose user's turns carry loss too.

    Returns:
        bool `[B, T]`.
    """
    labelled = batch["labels"] != IGNORED_LABEL
    of_user = sum_by_dialogue((labelled & (batch["token_type_ids"] == 0)).float(), batch["segment_ids"]) > 0
    return F.pad((labelled & of_user)[:, 1:], (0, 1), value=False)


class NamingRun(Run):
    """A run whose objective keeps the dialogues of all sets but those with `:replies`."""

    def _objective(self, stage: Stage) -> Objective:
        return keeping_objective(self.trained, stage)

    def _stop_diverged(self, error: DivergedError, rows: list[list[int]]) -> NoReturn:
        raise SettingsError(
            f"Loss {error.loss} with gradient norm {error.gradient_norm} at step {self.progress['step'] + 1}: the training"
            " has diverged. Start again with a lower --learning-rate and another --output."
        ) from None

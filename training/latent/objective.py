"""Loss of a run with --latent, in place of `training.optim.regularizers.Objective`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator

from chatbot.model.config import XianliaoConfig
from chatbot.model.latent.loss import LatentLoss, latent_loss
from chatbot.model.latent.replies import choose_replies
from chatbot.model.network import XianliaoForCausalLM
from training.latent.groups import LATENT
from training.latent.schedule import phase_at
from training.optim.regularizers import Objective
from training.settings import SettingsError, TrainSettings


class LatentObjective(Objective):
    """Loss and gradient of a micro-batch of a model with a latent.

    One reply per dialogue, drawn anew in every step, gets a z; the turns after it have no loss. The free bits are
    averaged over the micro-batch.

    Args:
        model: Unwrapped model.
        settings: Settings of the stage.
        steps: Steps of the stage.
        accelerator: Accelerator of the run, for its autocast.
    """

    def __init__(self, model: XianliaoForCausalLM, settings: TrainSettings, steps: int, accelerator: Accelerator):
        super().__init__(model, model, settings.regularization)
        self.network, self.run, self.steps, self.accelerator = model, settings, steps, accelerator
        self.others = [p for name, p in model.named_parameters() if not name.startswith(LATENT)]
        self.phase = phase_at(steps, steps, settings.latent_training)
        self._sums: dict[str, float] = {}

    def begin(self, step: int, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Set the phase of a step, counted from 0: weights of the loss, and the parameters that are trained."""
        self.phase, self._sums = phase_at(step, self.steps, self.run.latent_training), {}
        for parameter in self.others:
            parameter.requires_grad_(self.phase.language_model_rate > 0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                if not group.get("is_latent"):
                    group["rate_share"] = self.phase.language_model_rate

    def close(self) -> None:
        for parameter in self.others:
            parameter.requires_grad_(True)
        super().close()

    def backward(
        self,
        batch: dict[str, torch.Tensor],
        items: float,
        run_backward: Callable[[torch.Tensor], None],
        no_sync: Callable[[], AbstractContextManager] = nullcontext,
    ) -> tuple[float, float]:
        """Add the gradient of a micro-batch; arguments as for `Objective.backward`.

        Returns:
            -log p(r|c,z) of the replies, and all other terms, divided by `items`.
        """
        end_id = self.network.config.eos_token_id
        assert end_id is not None
        replies = choose_replies(batch, end_id)
        if not len(replies):
            return 0.0, 0.0
        with self.accelerator.autocast():
            result = latent_loss(self.network, batch, replies, self.phase.weights)
        run_backward(result.total / items)
        self._count(result, len(replies), int((replies.carrier >= 0).sum()))
        reply = result.reply / items
        return reply, result.total.item() / items - reply

    def _count(self, result: LatentLoss, replies: int, tokens: int) -> None:
        amounts = {"replies": replies, "tokens": tokens, "reply": result.reply, "bag": result.bag}
        amounts["divergence"] = result.divergence
        for name, value in amounts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """Return the entries of metrics.jsonl of the step: nats per token of the replies, or per reply."""
        sums = self._sums
        if not sums.get("replies"):
            return {}
        return {
            "latent_beta": self.phase.weights.beta,
            "latent_reply_nats_per_token": sums["reply"] / sums["tokens"],
            "latent_bag_nats_per_token": sums["bag"] / sums["tokens"],
            "latent_divergence_nats_per_reply": sums["divergence"] / sums["replies"],
        }


def with_latent(model: XianliaoForCausalLM, settings: TrainSettings) -> XianliaoForCausalLM:
    """Return the model with the latent that the settings ask for; if it already has one of that kind and size, keep it."""
    changes = {"latent": settings.latent, "latent_size": settings.latent_size, "latent_codes": settings.latent_codes}
    if model.latent is not None and all(getattr(model.config, name) == value for name, value in changes.items()):
        return model
    other = XianliaoForCausalLM(XianliaoConfig.from_dict({**model.config.to_dict(), **changes}))
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(LATENT)}
    other.load_state_dict(weights, strict=False)
    return other.to(model.device, model.dtype)  # type: ignore[arg-type]  # transformers declares .to without its self


def check_latent(model: XianliaoForCausalLM) -> None:
    """Check that a model can get a latent.

    Raises:
        SettingsError: The model has an end head or reads dialogues backwards.
    """
    if model.config.termination != "softmax" or model.config.direction != "forward":
        raise SettingsError(
            "--latent needs a checkpoint with a softmax end of turn that reads forwards; give another --init."
        )

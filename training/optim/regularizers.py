"""Regularizers of 苏剑林, "泛化性乱弹：从随机噪声、梯度惩罚到虚拟对抗训练" (kexue.fm/archives/7466), on packed rows.

All perturb the output e of the token embedding. The post's sequence is a dialogue here: norms are taken over the tokens
of one dialogue. l is the sum of the dialogue's nats, n the number of its targets.

    noise    l(e + sigma N(0, 1))
    FGM      l(e) + l(e + r), r = epsilon g / ||g||, g = dl/de; the parameters themselves are never perturbed
    penalty  l(e) + n epsilon / 2 ||g / n||^2: half the squared gradient of the dialogue's mean loss
    VAT      l(e) + KL(p(e) || p(e + epsilon u)), u the unit vector that changes p most, found by one power iteration
             from noise: u <- d KL(p(e) || p(e + xi u)) / du; p(e) is held fixed (Miyato et al., arXiv 1704.03976)

Dropout and label smoothing are part of the model's forward pass; weight decay is part of the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from chatbot.model.precision import at_least_float
from chatbot.text.layouts import IGNORED_LABEL
from training.settings import Regularization

XI = 1e-1
"""Length of the trial step of VAT's power iteration, as root mean square over the tokens of a dialogue."""

SLOWER = "the gradient penalty needs second derivatives; attention therefore uses the naive, slower implementations"


class TrainedNetwork(Protocol):
    """Methods that `Objective` needs of an unwrapped model."""

    def get_input_embeddings(self) -> nn.Module: ...

    def modules(self) -> Iterator[nn.Module]: ...


class EmbeddingTap:
    """Forward hook that records the output of an embedding and adds a perturbation to it.

    Attributes:
        perturbation: Added to the output, `[B, T, D]`; None adds nothing.
    """

    def __init__(self, embedding: nn.Module):
        self._output: torch.Tensor | None = None
        self.perturbation: torch.Tensor | None = None
        self.handle = embedding.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        self._output = output if self.perturbation is None else output + self.perturbation
        return self._output

    @property
    def output(self) -> torch.Tensor:
        """Return the output of the last forward pass, perturbation included, `[B, T, D]`."""
        if self._output is None:
            raise RuntimeError("the embedding has not run yet")
        return self._output

    def clear(self) -> None:
        """Drop the recorded output and the perturbation."""
        self._output = self.perturbation = None


def dialogue_norms(values: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean norm over all values of each token's dialogue: `[B, T, D]` -> `[B, T, 1]`."""
    squares = values.square().sum(-1)
    return sum_by_dialogue(squares, segment_ids).sqrt()[..., None]


def sum_by_dialogue(values: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """Return the sum over each token's dialogue: `[B, T]` -> `[B, T]`.

    Args:
        values: `[B, T]`.
        segment_ids: int64 `[B, T]`, numbers of the dialogues in a row, from 0.
    """
    sums = values.new_zeros(len(values), int(segment_ids.max()) + 1).scatter_add(1, segment_ids, values)
    return sums.gather(1, segment_ids)


def unit(values: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """Scale values `[B, T, D]` to norm 1 in every dialogue; a dialogue of zeros is returned unchanged."""
    norms = dialogue_norms(values, segment_ids)
    return values / norms.clamp_min(torch.finfo(values.dtype).tiny)


class Objective:
    """Loss and gradient of a micro-batch under the chosen regularizers.

    Args:
        model: Model as prepared for training, which may be a wrapper for several processes.
        inner: Unwrapped model.
        settings: Regularizers.

    Attributes:
        form: Form of the model's computation, `auto` or `naive`.
        notice: Message for the user about the form, or None.
    """

    def __init__(self, model: nn.Module, inner: TrainedNetwork, settings: Regularization):
        self.model, self.settings = model, settings
        self.embedding = inner.get_input_embeddings()
        self.mask_seed: int | None = None
        self.tap: EmbeddingTap | None = None
        if settings.embedding_noise or settings.fgm or settings.gradient_penalty or settings.vat:
            self.tap = EmbeddingTap(self.embedding)
        for module in inner.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings.dropout
        self.form = "naive" if settings.gradient_penalty else "auto"
        self.notice = SLOWER if settings.gradient_penalty else None

    def close(self) -> None:
        """Remove the hook from the model."""
        if self.tap is not None:
            self.tap.handle.remove()

    def backward(
        self,
        batch: dict[str, torch.Tensor],
        items: float,
        run_backward: Callable[[torch.Tensor], None],
        no_sync: Callable[[], AbstractContextManager] = nullcontext,
    ) -> tuple[float, float]:
        """Add the gradient of a micro-batch to the parameters.

        Args:
            batch: Model input with labels and segment_ids.
            items: Divisor of the sum of nats: the targets of the whole optimizer batch.
            run_backward: `accelerator.backward`.
            no_sync: Context that keeps gradients in this process; entered for all passes but the last.

        Returns:
            The loss, and the term that the regularizers add to it (0 for those that only perturb).
        """
        settings, tap = self.settings, self.tap
        self.mask_seed = int(torch.randint(2**62, ())) if settings.dropout else None
        if tap is None:
            loss = self._loss(batch, items)
            run_backward(loss)
            return loss.item(), 0.0
        tap.perturbation = self._noise(batch["input_ids"]) if settings.embedding_noise else None
        with no_sync() if settings.fgm else nullcontext():
            loss = self._loss(batch, items)
            embedded = tap.output
            if settings.fgm:
                embedded.retain_grad()
            extra = torch.zeros_like(loss)
            if settings.gradient_penalty:
                extra = extra + self._gradient_penalty(loss, embedded, batch, items)
            if settings.vat:
                extra = extra + self._vat(tap, batch, items)
            run_backward(loss + extra)
        if settings.fgm:
            assert embedded.grad is not None
            step = settings.fgm * unit(embedded.grad, batch["segment_ids"])
            tap.perturbation = step if tap.perturbation is None else tap.perturbation + step
            run_backward(self._loss(batch, items))
        tap.clear()
        return loss.item(), extra.item()

    def _run(self, batch: dict[str, torch.Tensor], **options: float) -> CausalLMOutputWithPast:
        """Run the model; all passes over a micro-batch use the same dropout mask."""
        if self.mask_seed is None:
            return self.model(**batch, form=self.form, **options)
        ids = batch["input_ids"]
        with torch.random.fork_rng([ids.device] if ids.is_cuda else []):
            torch.manual_seed(self.mask_seed)
            return self.model(**batch, form=self.form, **options)

    def _loss(self, batch: dict[str, torch.Tensor], items: float) -> torch.Tensor:
        smoothing = {"label_smoothing": self.settings.label_smoothing} if self.settings.label_smoothing else {}
        loss = self._run(batch, num_items_in_batch=items, **smoothing).loss
        assert loss is not None
        return loss

    def _noise(self, ids: torch.Tensor) -> torch.Tensor:
        weight = self.embedding.get_parameter("weight")
        shape = (*ids.shape, weight.shape[-1])
        return self.settings.embedding_noise * torch.randn(shape, device=ids.device, dtype=weight.dtype)

    def _gradient_penalty(
        self, loss: torch.Tensor, embedded: torch.Tensor, batch: dict[str, torch.Tensor], items: float
    ) -> torch.Tensor:
        gradient = torch.autograd.grad(loss * items, embedded, create_graph=True)[0]
        targets = (F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL) != IGNORED_LABEL).to(gradient.dtype)
        counts = sum_by_dialogue(targets, batch["segment_ids"]).clamp_min(1)
        return self.settings.gradient_penalty / 2 * (gradient.square().sum(-1) / counts).sum() / items

    def _vat(self, tap: EmbeddingTap, batch: dict[str, torch.Tensor], items: float) -> torch.Tensor:
        segments, noise = batch["segment_ids"], tap.perturbation
        counted = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL) != IGNORED_LABEL
        inputs = {name: value for name, value in batch.items() if name != "labels"}

        def log_p() -> torch.Tensor:
            logits = self._run(inputs).logits
            assert logits is not None
            return at_least_float(logits[counted]).log_softmax(-1)

        with torch.no_grad():
            fixed = log_p()
        sizes = sum_by_dialogue(torch.ones_like(segments, dtype=torch.float32), segments).sqrt()[..., None]
        step = unit(torch.randn_like(tap.output), segments) * sizes * XI
        step.requires_grad_()
        tap.perturbation = step if noise is None else noise + step
        direction = torch.autograd.grad(divergence(fixed, log_p()), step)[0]
        step = self.settings.vat * unit(direction, segments)
        tap.perturbation = step if noise is None else noise + step
        penalty = divergence(fixed, log_p()) / items
        tap.perturbation = noise
        return penalty


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the sum over the rows of KL(p || q), in nats; both arguments are `[N, V]`."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum")

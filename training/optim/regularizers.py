"""Regularizers of 苏剑林, "泛化性乱弹：从随机噪声、梯度惩罚到虚拟对抗训练" (kexue.fm/archives/7466), on packed rows.

All perturb the output e of the token embedding, and what is a sequence there is a dialogue here: norms are taken over
the tokens of one dialogue. l is the sum of its nats, n the number of its targets.

    noise    l(e + sigma N(0, 1))
    FGM      l(e) + l(e + r), r = epsilon g / ||g||, g = dl/de; the parameters are never touched
    penalty  l(e) + n epsilon / 2 ||g / n||^2: half the squared gradient of its mean loss
    VAT      l(e) + KL(p(e) || p(e + epsilon u)), u the unit vector that changes p most, found by one power iteration
             from noise: u <- d KL(p(e) || p(e + xi u)) / du; p(e) is held fixed (Miyato et al., arXiv 1704.03976)

Dropout and label smoothing belong to the model's forward; weight decay to the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from chatbot.model.precision import at_least_float
from chatbot.text.layouts import IGNORED_LABEL
from training.settings import Regularization

XI = 1e-1
"""Length of the trial step of VAT's power iteration, for each token of a dialogue on average."""

SLOWER = "the gradient penalty needs a second derivative: training runs on the naive forms, which are slower"


class EmbeddingTap:
    """Reads the output of an embedding and adds to it."""

    def __init__(self, embedding: nn.Module):
        self.output: torch.Tensor | None = None
        self.perturbation: torch.Tensor | None = None
        self.handle = embedding.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        self.output = output if self.perturbation is None else output + self.perturbation
        return self.output


def dialogue_norms(values: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """Euclidean norm over all values of the dialogue that a token belongs to: `[B, T, D]` -> `[B, T, 1]`."""
    squares = values.square().sum(-1)
    return sum_by_dialogue(squares, segment_ids).sqrt()[..., None]


def sum_by_dialogue(values: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """Sum of `[B, T]` over the dialogue that a token belongs to, `[B, T]`; segment_ids `[B, T]` count from 0 in a row."""
    sums = values.new_zeros(len(values), int(segment_ids.max()) + 1).scatter_add(1, segment_ids, values)
    return sums.gather(1, segment_ids)


def unit(values: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """Values `[B, T, D]` scaled to norm 1 in every dialogue; zero stays zero."""
    norms = dialogue_norms(values, segment_ids)
    return values / norms.clamp_min(torch.finfo(values.dtype).tiny)


class Objective:
    """Loss and gradient of a micro-batch under the chosen regularizers.

    Args:
        model: As prepared for training, perhaps wrapped for several processes.
        inner: The model itself.
        settings: What is wanted.

    Attributes:
        form: The model's form that the passes run on.
        notice: What the person should know about that, or None.
    """

    def __init__(self, model: nn.Module, inner: nn.Module, settings: Regularization):
        self.model, self.settings = model, settings
        self.embedding, self.tap = inner.get_input_embeddings(), None
        if settings.embedding_noise or settings.fgm or settings.gradient_penalty or settings.vat:
            self.tap = EmbeddingTap(self.embedding)
        for module in inner.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings.dropout
        self.form = "naive" if settings.gradient_penalty else "auto"
        self.notice = SLOWER if settings.gradient_penalty else None

    def close(self) -> None:
        """Takes the hook off the model."""
        if self.tap is not None:
            self.tap.handle.remove()

    def backward(
        self,
        batch: dict[str, torch.Tensor],
        items: float,
        run_backward: Callable[[torch.Tensor], None],
        no_sync: Callable[[], AbstractContextManager] = nullcontext,
    ) -> tuple[float, float]:
        """Adds the gradient of the micro-batch to the parameters.

        Args:
            batch: Model input with labels and segment_ids.
            items: What the sum of nats is divided by: targets of the whole optimizer batch.
            run_backward: `accelerator.backward`.
            no_sync: Keeps gradients in this process; entered for all passes but the last.

        Returns:
            The loss, and what the regularizers added to it (0 where they only perturb).
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
                extra = extra + self._vat(batch, items)
            run_backward(loss + extra)
        if settings.fgm:
            noise = 0.0 if tap.perturbation is None else tap.perturbation
            tap.perturbation = noise + settings.fgm * unit(embedded.grad, batch["segment_ids"])
            run_backward(self._loss(batch, items))
        tap.perturbation, tap.output = None, None
        return loss.item(), extra.item()

    def _run(self, batch: dict[str, torch.Tensor], **options):
        """The model's output; every pass over a micro-batch drops the same values."""
        if self.mask_seed is None:
            return self.model(**batch, form=self.form, **options)
        ids = batch["input_ids"]
        with torch.random.fork_rng([ids.device] if ids.is_cuda else []):
            torch.manual_seed(self.mask_seed)
            return self.model(**batch, form=self.form, **options)

    def _loss(self, batch: dict[str, torch.Tensor], items: float) -> torch.Tensor:
        smoothing = {"label_smoothing": self.settings.label_smoothing} if self.settings.label_smoothing else {}
        return self._run(batch, num_items_in_batch=items, **smoothing).loss

    def _noise(self, ids: torch.Tensor) -> torch.Tensor:
        weight = self.embedding.weight
        shape = (*ids.shape, weight.shape[-1])
        return self.settings.embedding_noise * torch.randn(shape, device=ids.device, dtype=weight.dtype)

    def _gradient_penalty(self, loss, embedded, batch: dict[str, torch.Tensor], items: float) -> torch.Tensor:
        gradient = torch.autograd.grad(loss * items, embedded, create_graph=True)[0]
        targets = (F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL) != IGNORED_LABEL).to(gradient.dtype)
        counts = sum_by_dialogue(targets, batch["segment_ids"]).clamp_min(1)
        return self.settings.gradient_penalty / 2 * (gradient.square().sum(-1) / counts).sum() / items

    def _vat(self, batch: dict[str, torch.Tensor], items: float) -> torch.Tensor:
        tap, segments, noise = self.tap, batch["segment_ids"], self.tap.perturbation
        counted = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL) != IGNORED_LABEL
        inputs = {name: value for name, value in batch.items() if name != "labels"}

        def log_p() -> torch.Tensor:
            return at_least_float(self._run(inputs).logits[counted]).log_softmax(-1)

        with torch.no_grad():
            fixed = log_p()
        sizes = sum_by_dialogue(torch.ones_like(segments, dtype=torch.float32), segments).sqrt()[..., None]
        step = unit(torch.randn_like(tap.output), segments) * sizes * XI
        step.requires_grad_()
        base = 0.0 if noise is None else noise
        tap.perturbation = base + step
        direction = torch.autograd.grad(divergence(fixed, log_p()), step)[0]
        tap.perturbation = base + self.settings.vat * unit(direction, segments)
        penalty = divergence(fixed, log_p()) / items
        tap.perturbation = noise
        return penalty


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Sum over the rows of KL(p || q), in nats; both `[N, V]`."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum")

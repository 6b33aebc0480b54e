"""Training loss of a model with a latent (arXiv 1312.6114; dialogue: Zhao et al., arXiv 1703.10960).

    L = -log p(r|c,z) + beta sum_d max(lambda, mean_batch KL_d) + alpha BoW(r|z,c)         Gaussian, z ~ q(z|c,r)
    L = -log p(r|c,k) - beta log p(k|c) + alpha BoW(r|k,c),  k = the code with the least L   discrete, hard EM

BoW is -sum over the words of r of log p(w|z,c). The E step of hard EM (Shen et al., arXiv 1902.07816) computes the loss
with every code, and the M step is a gradient step with the best code; there is no KL that could vanish. The turns
before the reply keep their ordinary loss with z = 0. Dims: B rows, T tokens, R replies, D hidden size, Z size of the
latent, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from chatbot.model.latent.gaussian import Normal, free_bits, kl_per_dimension
from chatbot.model.latent.layers import ReplyLatent
from chatbot.model.latent.replies import Replies
from chatbot.model.loss import head_loss
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.precision import at_least_float
from chatbot.text.layouts import IGNORED_LABEL

MAX_LOGITS = 2**24
"""Maximum number of logits that are in memory at the same time when the nats of every token are needed."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms at a training step.

    Attributes:
        beta: Weight of the KL, or of -log p(k|c).
        bag: alpha, weight of the bag of words.
        free_nats: lambda, nats of KL per dimension that are free of cost.
        word_dropout: Share of the reply's input words that are replaced by padding (Bowman et al. 2016).
    """

    beta: float = 1.0
    bag: float = 0.0
    free_nats: float = 0.0
    word_dropout: float = 0.0


@dataclass(frozen=True)
class LatentLoss:
    """Loss of a batch, summed over its replies and tokens, in nats.

    Attributes:
        total: The loss, with the ordinary loss of the earlier turns.
        reply: -log p(r|c,z) of the replies; detached.
        divergence: KL(q||p), or -log p(k|c), of the replies, without free bits; detached.
        bag: BoW of the replies; detached.
        kl: Mean KL of each dimension `[Z]`, or None with discrete z; detached.
        codes: Code of each reply `[R]`, or None with Gaussian z.
    """

    total: torch.Tensor
    reply: float
    divergence: float
    bag: float
    kl: torch.Tensor | None = None
    codes: torch.Tensor | None = None


def latent_of(model: XianliaoForCausalLM) -> ReplyLatent:
    """Return the latent layers of a model that has them."""
    assert model.latent is not None, "the model has no latent"
    return model.latent


def hidden(model: XianliaoForCausalLM, batch: dict[str, torch.Tensor], z: torch.Tensor | None = None) -> torch.Tensor:
    """Return the hidden states `[B, T, D]` of a packed batch, with z `[B, T, Z]` or without."""
    mask, speakers, segments = (batch.get(name) for name in ("attention_mask", "token_type_ids", "segment_ids"))
    return model.embed_and_mix(batch["input_ids"], mask, speakers, segments, latent=z)[0]


@dataclass(frozen=True)
class Encoded:
    """Hidden states without z, on which prior and recognition depend; no gradient.

    Attributes:
        context: At the ends of the messages, `[R, D]`.
        mean: Mean over the tokens of the replies, `[R, D]`.
        end: At the ends of the replies, `[R, D]`.
    """

    context: torch.Tensor
    mean: torch.Tensor
    end: torch.Tensor


@torch.no_grad()
def encode(model: XianliaoForCausalLM, batch: dict[str, torch.Tensor], replies: Replies) -> Encoded:
    """Run the model over a batch without z and without dropout."""
    was_training = model.training
    model.eval()
    states = at_least_float(hidden(model, batch))
    model.train(was_training)
    words = replies.words
    is_word = words >= 0
    sums = states.new_zeros(len(replies), states.shape[-1]).index_add(0, words[is_word], states[is_word])
    counts = (replies.ends - replies.contexts - 1).clamp_min(1)[:, None]
    context, end = states[replies.rows, replies.contexts], states[replies.rows, replies.ends]
    return Encoded(context, sums / counts, end)


def drop_words(batch: dict[str, torch.Tensor], replies: Replies, share: float, pad_id: int) -> dict[str, torch.Tensor]:
    """Replace a share of the replies' input words by padding, at random; the labels do not change."""
    if not share:
        return batch
    ids = batch["input_ids"]
    dropped = (torch.rand(ids.shape, device=ids.device) < share) & (replies.words >= 0)
    return {**batch, "input_ids": ids.masked_fill(dropped, pad_id)}


def latent_loss(
    model: XianliaoForCausalLM,
    batch: dict[str, torch.Tensor],
    replies: Replies,
    weights: LossWeights,
    noise: torch.Tensor | None = None,
) -> LatentLoss:
    """Return the loss of a packed batch.

    Args:
        model: A model with a latent variable.
        batch: `input_ids`, `token_type_ids`, `segment_ids`, `attention_mask`, int64 `[B, T]` each.
        replies: The replies that get a z, at least one.
        weights: Weights of the terms.
        noise: Standard normal `[R, Z]` of Gaussian z; default: drawn from torch's generator.
    """
    latent, encoded = latent_of(model), encode(model, batch, replies)
    read = drop_words(batch, replies, weights.word_dropout, model.config.pad_token_id or 0)
    kl = codes = None
    if latent.is_discrete:
        assert latent.codes is not None
        codes = code_costs(model, read, replies, encoded, weights).argmin(1)
        z = latent.codes.weight[codes]
        divergence = -latent.log_code_prior(encoded.context).gather(1, codes[:, None]).sum()
        charged = divergence
    else:
        prior, posterior = latent.prior(encoded.context), latent.recognition(encoded.mean, encoded.end)
        z = posterior.at(torch.randn_like(posterior.mean) if noise is None else noise)
        kl = kl_per_dimension(posterior, prior)
        divergence, charged = kl.sum(), free_bits(kl, weights.free_nats) * len(replies)
    states, head = hidden(model, read, replies.spread(z)), model.output_head()
    targets = F.pad(replies.labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    of_reply, counted = replies.carrier >= 0, targets != IGNORED_LABEL
    parts = [head_loss(states[part], *head, targets[part]) for part in (of_reply, counted & ~of_reply)]
    bag = bag_loss(model, z, encoded.context, replies)
    total = parts[0] + parts[1] + weights.beta * charged + weights.bag * bag
    kl_means = None if kl is None else kl.detach().mean(0)
    return LatentLoss(total, parts[0].item(), divergence.item(), bag.item(), kl_means, codes)


def bag_loss(model: XianliaoForCausalLM, z: torch.Tensor, context: torch.Tensor, replies: Replies) -> torch.Tensor:
    """Return BoW(r|z,c) summed over the replies, nats; the output embedding gets no gradient from it."""
    words = replies.words
    is_word = words >= 0
    states = latent_of(model).bag_states(z, context)[words[is_word]]
    return head_loss(states, model.output_head()[0].detach(), None, replies.labels[is_word])


@torch.no_grad()
def reply_nats(
    model: XianliaoForCausalLM, batch: dict[str, torch.Tensor], replies: Replies, z: torch.Tensor | None
) -> torch.Tensor:
    """Return -log p of the target at every position that predicts a reply, in reading order, fp32 `[N]`, nats.

    Args:
        model: The model.
        batch: Its input.
        replies: The replies.
        z: `[R, Z]`, or None for z = 0.
    """
    of_reply = replies.carrier >= 0
    states = hidden(model, batch, None if z is None else replies.spread(z))[of_reply]
    targets = F.pad(replies.labels[:, 1:], (0, 1), value=IGNORED_LABEL)[of_reply]
    weight, bias = model.output_head()
    rows = max(1, MAX_LOGITS // len(weight))
    pieces = zip(states.split(rows), targets.split(rows), strict=True)
    return torch.cat(
        [F.cross_entropy(at_least_float(F.linear(x, weight, bias)), y, reduction="none") for x, y in pieces]
    )


def sum_by_reply(values: torch.Tensor, replies: Replies) -> torch.Tensor:
    """Return the sums of `[N]` values of `reply_nats` per reply, `[R]`."""
    owners = replies.carrier[replies.carrier >= 0]
    return values.new_zeros(len(replies)).index_add(0, owners, values)


@torch.no_grad()
def code_costs(
    model: XianliaoForCausalLM,
    batch: dict[str, torch.Tensor],
    replies: Replies,
    encoded: Encoded,
    weights: LossWeights,
) -> torch.Tensor:
    """Compute the E step: the loss of every reply with every code, `[R, K]`, nats."""
    latent = latent_of(model)
    assert latent.codes is not None
    words, head = replies.words, model.output_head()[0]
    is_word = words >= 0
    owners, ids = words[is_word], replies.labels[is_word]
    columns = []
    for code in latent.codes.weight:
        z = code.expand(len(replies), -1)
        cost = sum_by_reply(reply_nats(model, batch, replies, z), replies)
        if weights.bag:
            log_p = at_least_float(F.linear(latent.bag_states(z, encoded.context), head)).log_softmax(-1)
            cost = cost - weights.bag * cost.new_zeros(len(cost)).index_add(0, owners, log_p[owners, ids])
        columns.append(cost)
    return torch.stack(columns, 1) - weights.beta * latent.log_code_prior(encoded.context)


def posterior_of(model: XianliaoForCausalLM, encoded: Encoded) -> tuple[Normal, Normal]:
    """Return q(z|c,r) and p(z|c) of a Gaussian latent."""
    latent = latent_of(model)
    return latent.recognition(encoded.mean, encoded.end), latent.prior(encoded.context)

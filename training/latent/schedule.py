"""Phases of a run with --latent, and the weights of the loss in each; beta is the weight of the KL.

    1 autoencoding  beta 0, language model frozen: z must carry the reply (Li et al., arXiv 1909.00868)
    2 cycles        beta rises from 0 to 1 in the first half of each cycle and stays there (Fu et al., arXiv 1903.10145)
    3 end           beta 1

The weight of the bag-of-words loss falls linearly over phase 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatbot.model.latent.loss import LossWeights
from training.settings import LatentTraining


@dataclass(frozen=True)
class Phase:
    """What a step trains, and with which weights of the loss.

    Attributes:
        weights: Weights of the loss.
        language_model_rate: Share of the learning rate for all parameters outside the latent; 0 freezes them.
    """

    weights: LossWeights
    language_model_rate: float


def autoencoding_steps(steps: int, settings: LatentTraining) -> int:
    """Return the number of steps of phase 1."""
    return round(settings.autoencoding_share * steps)


def phase_at(step: int, steps: int, settings: LatentTraining) -> Phase:
    """Return the phase of a step, counted from 0, of a run of `steps` steps."""
    first = autoencoding_steps(steps, settings)
    cycling = min(steps - first, round(settings.cycling_share * steps))
    if step < first:
        beta, fallen = 0.0, 0.0
    elif step < first + cycling:
        fallen = (step - first) / cycling
        beta = min(1.0, 2 * (fallen * settings.cycles % 1))
    else:
        beta, fallen = 1.0, 1.0
    bag = settings.bag_of_words + (settings.final_bag_of_words - settings.bag_of_words) * fallen
    weights = LossWeights(beta, bag, settings.free_nats, settings.word_dropout)
    return Phase(weights, 0.0 if step < first else settings.language_model_rate)

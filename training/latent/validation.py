"""Validation of a latent, and stopping a run whose latent has collapsed."""

from __future__ import annotations

from chatbot.model.latent.measures import LatentMeasures, measure, reply_batches, reply_units
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.dialogue import count_units
from chatbot.text.tokenizer import DialogueTokenizer
from training.latent.schedule import autoencoding_steps
from training.settings import SettingsError
from training.stage import Stage
from training.trained_model import TrainedModel


def measure_latent(trained: TrainedModel, stage: Stage, tokenizer: DialogueTokenizer) -> LatentMeasures | None:
    """Return the measures on the last replies of the validation dialogues; None with fewer than two replies."""
    model = trained.inner
    assert isinstance(model, XianliaoForCausalLM)
    batches = reply_batches(trained.layout, stage.valid_dialogues, model.device)
    if sum(len(replies) for _, replies in batches) < 2:
        return None
    units = reply_units(batches, lambda ids: count_units([tokenizer.decode(ids)]))
    was_training = model.training
    model.eval()
    measures = measure(model, batches, units)
    model.train(was_training)
    return measures


def entries_of(measures: LatentMeasures) -> dict[str, float]:
    """Return the measures as entries of metrics.jsonl."""
    entry = {
        "latent_bound_nats_per_unit": measures.bound,
        "latent_base_nats_per_unit": measures.base,
        "latent_reply_nats_per_unit": measures.with_z,
        "latent_prior_nats_per_unit": measures.from_prior,
        "latent_shuffle_cost": measures.shuffle_cost,
        "latent_active_units": float(measures.active_units),
        "latent_mutual_information": measures.mutual_information,
        "latent_divergence": measures.divergence,
    }
    entry |= {f"latent_kl_{number:02}": value for number, value in enumerate(measures.kl)}
    return entry | {f"latent_gain_{number}": value for number, value in enumerate(measures.gain_by_position)}


def check_not_collapsed(measures: LatentMeasures, stage: Stage, step: int) -> None:
    """Check, after the autoencoding phase, that replacing a reply's z by another reply's z raises the loss.

    Args:
        measures: Measures after the step.
        stage: Stage of the run.
        step: Steps of the stage taken.

    Raises:
        SettingsError: The latent has collapsed.
    """
    settings = stage.settings.latent_training
    least = settings.min_shuffle_cost
    if step <= autoencoding_steps(stage.steps, settings) or measures.shuffle_cost >= least:
        return
    raise SettingsError(
        f"The latent has collapsed at step {step}: the z of another reply costs {measures.shuffle_cost:.3f} nats/unit, and"
        f" the minimum is {least}. Start again in a new --output with a larger --latent-training.free-nats,"
        " with fewer --batch-rows (more updates), or with shorter dialogues."
    )

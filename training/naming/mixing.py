"""Mix the weights of a bot before and after the training of its name.

For a share s the weights are s * after + (1 - s) * before (Wortsman et al. 2022, arXiv:2109.01903). With a small share
the bot forgets less, with a large one it says its name more often. The share is chosen on the questions and dialogues
of the part `tuning`, which are used for nothing else, so no question of the guard influences the choice.
"""

from __future__ import annotations

from pathlib import Path

import torch

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import GENERATION, TRAINING, load_model, save
from chatbot.decoding.batch import make_native
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json
from training.naming.dialogues import Identity
from training.naming.guard import (
    Advance,
    count_replies,
    count_scored,
    least_room,
    measure_identity,
    measure_knowledge,
)
from training.naming.results import Results
from training.state.run_folder import saved_steps
from training.state.saved_state import load_weights

SHARES = (0.55, 0.7, 0.85, 1.0)
"""Shares that are tried."""


def count_work(identity: Identity, sets: dict[str, list[list[str]]]) -> tuple[int, int]:
    """Return how many dialogues `keep_best_share` scores and how many replies it asks for."""
    return (1 + len(SHARES)) * count_scored(sets, 0), len(SHARES) * count_replies(identity, "tuning", 1)


def keep_best_share(
    folder: Path,
    start: str,
    identity: Identity,
    sets: dict[str, list[list[str]]],
    max_loss: float,
    device: str,
    advance: Advance = lambda count: None,
    results: Results | None = None,
) -> dict[str, float]:
    """Replace a checkpoint's weights with a mixture of those before and after the training.

    Among the mixtures tried, it is the one whose smallest distance to a limit of `guard` is largest. The weights after
    the training are those of the newest saved state, so that a command that was stopped while it replaced the
    checkpoint does not mix a mixture.

    Args:
        folder: Checkpoint after the training, with its saved states, if it has any.
        start: Checkpoint before it.
        identity: Name and maker.
        sets: Dialogues that the bot must not forget, by the name of their set.
        max_loss: Maximum rise of the loss on a set, in nats/unit.
        device: Device of the measurement.
        advance: Progress bar, as for `measure_knowledge`.
        results: Results of a stopped command, by the name of the mixture.

    Returns:
        `share`, and `room`: distance to the nearest limit (`guard.least_room`).
    """
    bot = Chatbot.from_pretrained(folder, device)
    if not isinstance(
        bot.model, XianliaoForCausalLM
    ):  # an adapter to a foreign model did not exist before the training
        return {"share": 1.0}
    if saved_steps(folder):
        load_weights(folder, bot.model)
    results = results or Results()
    after = {name: tensor.clone() for name, tensor in bot.model.state_dict().items()}
    before = load_model(start, str(bot.model.device)).state_dict()
    mix(bot, before, after, 0.0)
    known = measure_knowledge(bot, sets, choices=0, advance=advance, results=results.of("tuning before"))
    rooms = {}
    for share in SHARES:
        mix(bot, before, after, share)
        part = results.of(f"share {share}")
        answers = measure_identity(bot, identity, "tuning", seeds=1, advance=advance, results=part)
        knows = measure_knowledge(bot, sets, choices=0, advance=advance, results=part)
        rooms[share] = least_room(answers, known, knows, max_loss)
    best = max(rooms, key=lambda share: rooms[share])
    mix(bot, before, after, best)
    training = {**read_json(folder / TRAINING), "share_of_training": best}
    save(folder, bot.model, bot.tokenizer, read_json(folder / GENERATION), training)
    return {"share": best, "room": rooms[best]}


@torch.no_grad()
def mix(bot: Chatbot, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float) -> None:
    """Give a bot the weights share * after + (1 - share) * before, and drop the states that other weights have computed."""
    assert isinstance(bot.model, XianliaoForCausalLM)
    bot.model.load_state_dict({name: torch.lerp(before[name], tensor, share) for name, tensor in after.items()})
    make_native(bot.model)
    bot.snapshots.clear()

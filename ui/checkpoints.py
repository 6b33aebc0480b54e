"""Load the checkpoints of a server and give each a unique name."""

from __future__ import annotations

from collections.abc import Sequence

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.location import resolve
from chatbot.errors import XianliaoError
from chatbot.safety import Safety


def load_bots(
    checkpoints: Sequence[str],
    device: str = "auto",
    dtype: str = "auto",
    safety: Safety | str | None = "default",
    context_tokens: int | None = None,
) -> list[Chatbot]:
    """Load checkpoints. A bot is named after its folder, and after the parent folder too if two folders share a name.

    Args:
        checkpoints: Checkpoint folders, or `default` for the bundled one.
        device: auto, cpu, cuda or mps.
        dtype: As for `Chatbot.from_pretrained`.
        safety, context_tokens: As for `Chatbot.from_pretrained`.

    Raises:
        XianliaoError: A checkpoint cannot be loaded, or is given twice.
    """
    folders = [resolve(checkpoint).resolve() for checkpoint in checkpoints]
    for folder in folders:
        if folders.count(folder) > 1:
            raise XianliaoError(f"--checkpoint names {folder} twice. Give every checkpoint once.")
    bots = [
        Chatbot.from_pretrained(checkpoint, device, dtype, safety, context_tokens=context_tokens)
        for checkpoint in checkpoints
    ]
    names = [bot.name for bot in bots]
    for bot, folder in zip(bots, folders, strict=True):
        if names.count(bot.name) > 1:
            bot.name = f"{folder.parent.name}/{folder.name}"
    return bots

"""The checkpoints that a server serves, and what they are called there."""

from __future__ import annotations

from collections.abc import Sequence

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import resolve
from chatbot.errors import XianliaoError
from chatbot.safety import Safety


def load_bots(
    checkpoints: Sequence[str], device: str = "auto", dtype: str = "auto", safety: Safety | str | None = "default"
) -> list[Chatbot]:
    """The bots, each with a name of its own: its folder's, with the folder above where two have the same.

    Raises:
        XianliaoError: A checkpoint cannot be loaded, or is given twice.
    """
    folders = [resolve(checkpoint).resolve() for checkpoint in checkpoints]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise XianliaoError(f"--checkpoint names {twice[0]} twice; give every checkpoint once.")
    bots = [Chatbot.from_pretrained(checkpoint, device, dtype, safety) for checkpoint in checkpoints]
    for bot, folder in zip(bots, folders, strict=True):
        if [each.name for each in folders].count(folder.name) > 1:
            bot.name = f"{folder.parent.name}/{folder.name}"
    return bots

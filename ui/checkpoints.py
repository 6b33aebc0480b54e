"""Load the checkpoints of a server and give each a unique name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.location import resolve
from chatbot.errors import CheckpointError, XianliaoError
from chatbot.safety import Safety
from chatbot.storage import read_json
from chatbot.text.dialogue import valid_text

NAMING = "naming.json"
"""Record of xianliao-name in a checkpoint folder."""
MAX_NAME_CHARACTERS = 40


def load_bots(
    checkpoints: Sequence[str],
    device: str = "auto",
    dtype: str = "auto",
    safety: Safety | str | None = "default",
    context_tokens: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Chatbot]:
    """Load checkpoints. A bot is named after its folder, and after the parent folder too if two folders share a name.

    Args:
        checkpoints: Checkpoint folders, or `default` for the bundled one.
        device: auto, cpu, cuda or mps.
        dtype: As for `Chatbot.from_pretrained`.
        safety, context_tokens: As for `Chatbot.from_pretrained`.
        changes: Settings of replies by name that replace those of the checkpoints; None keeps the checkpoint's.

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
    given = {name: value for name, value in (changes or {}).items() if value is not None}
    for bot in bots:
        bot.settings = bot.settings.with_changes(**given)
    names = [bot.name for bot in bots]
    for bot, folder in zip(bots, folders, strict=True):
        if names.count(bot.name) > 1:
            bot.name = f"{folder.parent.name}/{folder.name}"
    return bots


def shown_name(bot: Chatbot, count: int) -> str:
    """Return the name of a bot for the page: the one that xianliao-name gave it, or else the name of its folder.

    Args:
        bot: The bot.
        count: Number of bots on the page. The name is empty for the bundled bot, and for the only one unless
            xianliao-name gave it a name.
    """
    record: Any = {}
    if bot.folder is not None and (bot.folder / NAMING).exists():
        with suppress(CheckpointError):
            record = read_json(bot.folder / NAMING, CheckpointError)
    identity = record.get("identity")
    name = identity.get("name") if isinstance(identity, dict) else None
    if isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARACTERS:
        return valid_text(name)
    return bot.name if count > 1 and bot.name != "default" else ""

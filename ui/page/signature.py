"""Signatures of replies: only a reply that this process made can be rated.

A browser holds the conversation and could send any text as a reply, which would become training data. So each complete
reply has an HMAC over the turns that the model read, the reply and its settings, under a key that is made anew when the
process starts. After a restart, or at another replica, older replies can no longer be rated.

The turns before a rated reply become training data as well, so only those after the last unsigned reply are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence

from ui.page.chats import Chat, turns_of

SIGNED_FIELDS = ("seed", "model", "temperature", "top_p", "variation", "spread", "point")
_KEY = secrets.token_bytes(32)


def sign(turns: Sequence[str], reply: Mapping[str, object]) -> str:
    """Return the signature of a reply.

    Args:
        turns: Turns that the model read and, last, the reply.
        reply: Message with the fields in `SIGNED_FIELDS`; a missing field counts as None.
    """
    values = [_as_browsers_write(reply.get(name)) for name in SIGNED_FIELDS]
    content = json.dumps([list(turns), values]).encode()
    return hmac.new(_KEY, content, hashlib.sha256).hexdigest()[:32]


def _as_browsers_write(value: object) -> object:
    """Return 1 for 1.0, because a browser sends a whole number back without its decimal point."""
    if isinstance(value, list):
        return [_as_browsers_write(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_signed(turns: Sequence[str], reply: Mapping[str, object]) -> bool:
    """Whether a reply has the signature that this process gave it."""
    signature = reply.get("signature")
    return isinstance(signature, str) and signature.isascii() and hmac.compare_digest(signature, sign(turns, reply))


def turns_of_this_process(chat: Chat, index: int, most: int) -> list[str]:
    """Return the turns up to a reply, starting after the latest earlier turn of the bot that this process did not make.

    Turns of the bot that this process did not make: those of a persona or an imported file, and replies that were
    changed, stopped or fixed.

    Args:
        chat: The conversation.
        index: Index of the reply in `chat["messages"]`; the reply is signed.
        most: Maximum number of turns to return. It also bounds the number of signatures that are checked.
    """
    messages = chat["messages"][: index + 1]
    turns, begin = turns_of({**chat, "messages": messages}), len(chat["persona"])
    for at in range(index - 1, -1, -1):
        if messages[at]["role"] == "assistant" and messages[at]["text"]:
            before = turns_of({**chat, "messages": messages[: at + 1]})
            if not is_signed(before, messages[at]):
                begin = len(before)
                break
            if len(turns) - len(before) >= most:
                break
        elif messages[at]["role"] == "divider":
            break
    return turns[max(begin, len(turns) - most) :]

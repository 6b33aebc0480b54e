"""Signatures of replies: only a reply that this process made can be rated.

A browser holds the conversation and could send any text as a reply, which would become training data. So each complete
reply has an HMAC over the turns that the model read, the reply and its settings, under a key that is made anew when the
process starts. After a restart, or at another replica, older replies can no longer be rated.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence

SIGNED_FIELDS = ("seed", "model", "temperature", "top_p")
_KEY = secrets.token_bytes(32)


def sign(turns: Sequence[str], reply: Mapping[str, object]) -> str:
    """Return the signature of a reply.

    Args:
        turns: Turns that the model read and, last, the reply.
        reply: Message with the fields in `SIGNED_FIELDS`; a missing field counts as None.
    """
    numbers = [reply.get(name) for name in SIGNED_FIELDS]
    content = json.dumps([list(turns), numbers]).encode()
    return hmac.new(_KEY, content, hashlib.sha256).hexdigest()[:32]


def is_signed(turns: Sequence[str], reply: Mapping[str, object]) -> bool:
    """Whether a reply has the signature that this process gave it."""
    signature = reply.get("signature")
    return isinstance(signature, str) and signature.isascii() and hmac.compare_digest(signature, sign(turns, reply))

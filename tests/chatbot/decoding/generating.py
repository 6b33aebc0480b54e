"""Replies of transformers' `generate` with our list of rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.hf_generate import reply_processors


def generated(bot: Chatbot, turns: Sequence[str], earlier: Sequence[int] = (), **changes) -> list[int]:
    """Return the token ids of the greedy reply to a history, without its end of turn.

    Args:
        bot: The bot.
        turns: The history.
        earlier: Indices of the turns that are the bot's last replies, for the rules against repetition.
        changes: Fields of `ReplySettings`.
    """
    settings = bot.settings.with_changes(method="greedy", **changes)
    ids = bot.encode_turns(turns)
    prompt = bot.layout.prompt(ids, bot.context_tokens)
    tensor = torch.tensor([prompt.input_ids])
    reply = bot.model.generate(
        tensor,
        attention_mask=torch.ones_like(tensor),
        token_type_ids=torch.tensor([prompt.speaker_ids]),
        logits_processor=reply_processors(settings, bot.vocabulary, tensor.shape[1], [ids[index] for index in earlier]),
        do_sample=False,
        max_new_tokens=settings.limit_tokens + 1,
        eos_token_id=bot.vocabulary.end_id,
        pad_token_id=0,
    )
    return reply[0, tensor.shape[1] : -1].tolist()

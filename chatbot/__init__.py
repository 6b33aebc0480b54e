"""xianliao (闲聊): the code that training and serving share.

The folders are import levels, lowest first. A module imports from its own folder and from lower ones, never from
`data_prep`, `training` or `ui` (`tests/test_layers.py` checks this):

    errors, storage, language         error messages; atomic writes and locks; translation into Chinese
    text                              cleaning, layouts, tokenizer, files of dialogues and settings; needs no torch
    safety                            fixed replies for people in crisis, words that are kept out; needs no torch
    native                            the compiled library in C; knows arrays, not models
    model, similarity                 the network, its mixers and losses; token vectors and distances
    decoding                          from logits to tokens: rules, sampler, beams, batches of dialogue states
    checkpoint                        folders of weights, conversion from and to other projects
    chat                              the bot, conversations, the worker that decodes many at once, options of its commands
    evaluation                        measuring checkpoints and decoders
    cli                               xianliao-chat and xianliao-evaluate

    from chatbot import Chatbot, ChatSession
    bot = Chatbot.from_pretrained("default")
    bot.reply(["你好", "你好呀", "今天心情不太好"], seed=0)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from chatbot.model.registration import register_lazily

if TYPE_CHECKING:
    from chatbot.chat.bot import Chatbot, Reply
    from chatbot.chat.session import ChatSession

__version__ = "0.1.0"
__all__ = ["ChatSession", "Chatbot", "Reply", "__version__"]

_HOMES = {"Chatbot": "chatbot.chat.bot", "Reply": "chatbot.chat.bot", "ChatSession": "chatbot.chat.session"}

register_lazily()


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""xianliao (闲聊): everything that training and serving must agree on.

Import levels, lowest first; a module imports only from lower ones, and no other room of the project:

    1  errors, bundled, dialogue, chat_template, tokenizer,
       dialogue_files, locking, similarity, vectors,
       layer_types, native/                         text, files, the C library: neither torch nor transformers
    2  configuration, precision, state, attention/,
       end_heads, loss, model, foreign, lora        the network, and those of other projects
    3  native_network, native_slots, steps,
       snapshots                                    reading and decoding, compiled where that is possible
    4  termination, repetition, banned_words,
       reply_settings, sampling, next_token,
       native_draw, beam, generate, quality,
       rerank, gpt2, checkpoint                     decoding, scoring, folders
    5  bot, lanes, trace, batching, session         conversations
    6  evaluation/                                      measuring
    7  cli                                              commands

    from chatbot import Chatbot, ChatSession
    bot = Chatbot.from_pretrained("default")
    bot.reply(["你好", "你好呀", "今天心情不太好"], seed=0)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from chatbot.registration import register_lazily

if TYPE_CHECKING:
    from chatbot.bot import Chatbot, Reply
    from chatbot.session import ChatSession

__version__ = "0.1.0"
__all__ = ["ChatSession", "Chatbot", "Reply", "__version__"]

_HOMES = {"Chatbot": "chatbot.bot", "Reply": "chatbot.bot", "ChatSession": "chatbot.session"}

register_lazily()


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

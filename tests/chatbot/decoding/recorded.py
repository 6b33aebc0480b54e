"""Two hundred requests to tiny models, and the replies that were recorded before decoding had one loop.

    python -m tests.chatbot.decoding.recorded        # writes recorded.json

The best of several candidates was recorded again when its score changed to log p over the root of the length.
The weights come from NumPy's generator, which gives the same numbers on every machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.batch import make_native
from chatbot.decoding.settings import ReplySettings
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.tokenizer import DialogueTokenizer
from tests.chat_models import write_chat_model
from tests.conftest import SAMPLES, tiny_config

FILE = Path(__file__).with_name("recorded.json")
SETTINGS = ReplySettings(floor_start_tokens=12, floor_delta_tokens=4)
HISTORIES = [
    ["你好"],
    ["今天心情不太好"],
    ["你好", "你好呀", "今天吃什么"],
    ["我考试没考好", "怎么了", "数学没考好"],
    ["在吗", "在呢", "下雨了，没带伞", "那等等再走", "好吧"],
    ["hello 😀", "嗨", "你是谁"],
]
METHODS = [
    {},
    {"temperature": 1.3},
    {"top_p": 0.5, "top_k": 20},
    {"method": "greedy"},
    {"method": "beam", "beams": 3},
    {"candidates": 4},
    {"min_p": 0.05, "repetition_penalty": 1.2},
    {"typical_p": 0.8, "candidates": 2},
    {"no_repeat_ngram": 2, "method": "greedy"},
    {"banned_words": ("的", "好"), "floor_start_tokens": 4, "floor_delta_tokens": 3},
    {"method": "beam", "beams": 2, "no_repeat_ngram": 3, "repeat_cost": 2.0},
    {"candidates": 3, "rank_similarity": 1.0, "top_p": 1.0},
    {"max_reply_tokens": 5},
]
PER_MODEL = 13
GATED = {"layer_types": ["linear_gated", "linear_decay"]}
DELTA = {"layer_types": ["gated_delta", "sliding_softmax"], "short_conv": 4, "output_gate": True, "sliding_window": 8}
SOFTMAX = {"layer_types": ["softmax", "softmax"]}
MODELS = {  # our networks: changes of `tiny_config`, and how they are run
    "gated, compiled": (GATED, "float32"),
    "gated, compiled int8": (GATED, "int8"),
    "gated": (GATED, None),
    "delta and window, compiled": (DELTA, "float32"),
    "delta and window": (DELTA, None),
    "softmax": (SOFTMAX, None),
    "softmax, convolution": (SOFTMAX | {"short_conv": 3}, None),
    "softmax, learned positions": (SOFTMAX | {"positions": "learned", "max_position_embeddings": 160}, None),
    "features": ({"layer_types": ["linear_taylor2", "linear_efficient"], "linear_rope": True}, None),
    "synthesizer": ({"layer_types": ["synthesizer_mixture", "linear_elu1"], "max_position_embeddings": 160}, None),
    "st head": ({**GATED, "termination": "st", "termination_epsilon": 0.01}, None),
    "nmst head": ({**SOFTMAX, "termination": "nmst", "termination_epsilon": 0.01}, None),
}
CHAT_MODELS = ("qwen2", "llama", "qwen3", "mistral")  # folders as transformers writes them
NAMES = (*MODELS, *CHAT_MODELS)


def _texts() -> list[str]:
    return [turn for line in (SAMPLES / "everyday.jsonl").open(encoding="utf-8") for turn in json.loads(line)]


@cache
def _tokenizer() -> DialogueTokenizer:
    return DialogueTokenizer.train(_texts(), vocab_size=700)


def build(name: str, folder: Path) -> Chatbot | None:
    """Return a bot, or None if it needs the compiled library and this machine has none."""
    if name in CHAT_MODELS:
        write_chat_model(folder / name, _texts(), name)
        bot = Chatbot.from_pretrained(folder / name, "cpu", "float32")
        set_weights(bot.model)
        bot.settings = SETTINGS
        return bot
    changes, compiled = MODELS[name]
    tokenizer = _tokenizer()
    model = XianliaoForCausalLM(tiny_config(tokenizer, **changes)).eval()
    set_weights(model)
    if compiled and not make_native(model, compiled == "int8"):
        return None
    return Chatbot(model, tokenizer, SETTINGS, name)


@torch.no_grad()
def set_weights(model: torch.nn.Module) -> None:
    """Set weights that do not depend on torch's random numbers; distributions are far from flat."""
    for name, parameter in model.named_parameters():
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        values = torch.from_numpy(draw.standard_normal(tuple(parameter.shape), dtype=np.float32))
        if parameter.ndim > 1:
            parameter.copy_(values * 0.25)
        else:
            parameter.add_(values * 0.1)


def requests(name: str) -> list[tuple[list[str], int, dict]]:
    """Return the history, seed and settings of each request to a model."""
    shift = NAMES.index(name)
    return [
        (HISTORIES[(number + shift) % len(HISTORIES)], 1000 * shift + number, METHODS[(number + shift) % len(METHODS)])
        for number in range(PER_MODEL)
    ]


def replies(name: str, bot: Chatbot) -> list[list]:
    """Return token ids, stop reason and log-probability of every reply.

    The mask of unreadable tokens did not exist when the replies were recorded, so it is switched off.
    """
    bot.vocabulary = replace(bot.vocabulary, readable=None)
    answers = [bot.respond(turns, seed, **changes) for turns, seed, changes in requests(name)]
    return [[list(reply.token_ids), reply.stop_reason, round(reply.log_prob, 4)] for reply in answers]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = {}
        for name in NAMES:
            bot = build(name, Path(folder))
            if bot is None:
                sys.exit(f"{name} needs the compiled library, which this machine does not have.")
            table[name] = replies(name, bot)
    lines = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in table.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

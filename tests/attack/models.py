"""Damaged models: whatever their logits are, every reply ends within its bound or is refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from chatbot import Chatbot
from chatbot.checkpoint.folder import resolve
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.tokenizer import DialogueTokenizer
from tests.attack.target import Row
from tests.conftest import tiny_config

HEADS = ("softmax", "st", "nmst")
START_TOKENS, DELTA_TOKENS = 12, 6
DamageDone = Callable[[torch.Tensor, int], None]


def _never(logits: torch.Tensor, end: int) -> None:
    logits[..., end] -= 1e4


def _minus_infinity(logits: torch.Tensor, end: int) -> None:
    logits[..., end] = -math.inf


def _peak(logits: torch.Tensor, end: int) -> None:
    logits *= 1e4


def _flat(logits: torch.Tensor, end: int) -> None:
    logits.zero_()


def _one(logits: torch.Tensor, end: int) -> None:
    logits.fill_(-math.inf)
    logits[..., 300] = 0.0


def _plain(logits: torch.Tensor, end: int) -> None:
    """Leave random weights as they are."""


DAMAGES: tuple[DamageDone, ...] = (_never, _minus_infinity, _peak, _flat, _one, _plain)

SETTINGS = (
    {},
    {"method": "greedy"},
    {"method": "beam"},
    {"candidates": 3},
    {"temperature": 100.0, "top_p": 1.0},
    {"temperature": 0.01, "top_k": 1},
    {"min_p": 1.0},
    {"typical_p": 0.01},
    {"top_n_sigma": 0.01},
    {"no_repeat_ngram": 1, "repeat_cost": math.inf},
    {"dry_multiplier": 100.0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.0},
    {"repetition_penalty": 10.0, "presence_penalty": 2.0},
    {"banned_words": ("好", "你", "的")},
    {"min_reply_tokens": START_TOKENS},
    {"logit_bias": ((2, -100.0),)},
)
MESSAGES = ("你好", "讲个很长的故事")


def damaged_bot(tokenizer: DialogueTokenizer, head: str, damage: DamageDone) -> Chatbot:
    """Return a bot whose model has a head of this kind and damaged logits."""
    torch.manual_seed(0)
    config = tiny_config(tokenizer, termination=head, initializer_range=0.3)
    model = XianliaoForCausalLM(config).eval()

    def hook(_module: torch.nn.Module, _inputs: tuple, output):
        damage(output.logits, tokenizer.sep_id)

    model.register_forward_hook(hook)
    settings = ReplySettings(floor_start_tokens=START_TOKENS, floor_delta_tokens=DELTA_TOKENS)
    return Chatbot(model, tokenizer, settings)


def damaged_models(row: Row) -> None:
    """Replies of 18 damaged models end within the bound of their settings."""
    tokenizer = DialogueTokenizer.load(resolve("default"))
    bound = START_TOKENS + DELTA_TOKENS + 1
    for head in HEADS:
        for damage in DAMAGES:
            bot = damaged_bot(tokenizer, head, damage)
            for changes in SETTINGS:
                for number, message in enumerate(MESSAGES):
                    try:
                        reply = bot.respond([message], seed=number, **changes)
                        holds = len(reply.token_ids) <= bound and reply.stop_reason != "limit"
                    except XianliaoError as error:  # such as every token removed
                        holds = "\n" not in str(error)
                    row.check(holds, (head, damage.__name__, changes, message))

"""Drive the compiled network with odd shapes, lengths, ids and damaged weights; run by test_sanitizers with a checked build.

Every call goes through the product's own classes, which check what C is given; the sanitizers watch what C does with it.
"""

from __future__ import annotations

import contextlib
import random
import sys

import torch

from chatbot.decoding.batch import make_native, start_batch
from chatbot.model.config import XianliaoConfig
from chatbot.model.network import XianliaoForCausalLM
from chatbot.native import library

library.FLAGS = tuple(flag for flag in library.FLAGS if not flag.startswith("-O"))
library.TARGETS = (("-O1", "-g", "-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),)
MIXERS = ("linear_elu1", "linear_gated", "linear_decay", "gated_delta", "sliding_softmax", "linear_softmax_feat")


def model_of(draw: random.Random) -> XianliaoForCausalLM:
    """A network of random sizes, among them ones that fill no vector register."""
    heads, head_dim = draw.choice([1, 2, 3]), draw.choice([4, 6, 8, 16])
    width = heads * draw.choice([4, 8, 10, 12])
    layers = draw.choice([1, 2, 3])
    torch.manual_seed(draw.randrange(1 << 30))
    config = XianliaoConfig(
        vocab_size=draw.choice([17, 64, 101, 130]),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        head_dim=head_dim,
        intermediate_size=draw.choice([5, 16, 33, 64]),
        layer_types=[draw.choice(MIXERS) for _ in range(layers)],
        short_conv=draw.choice([0, 2, 4]),
        output_gate=draw.choice([True, False]),
        hidden_act=draw.choice(["gelu", "gelu_new", "relu", "silu"]),
        sliding_window=draw.choice([1, 3, 16]),
        positions=draw.choice(["rope", "none"]),
        initializer_range=draw.choice([0.02, 0.5]),
        tie_word_embeddings=draw.choice([True, False]),
        use_bias=draw.choice([True, False]),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = XianliaoForCausalLM(config).eval()
    if draw.random() < 0.3:  # damaged weights: infinities and NaN must not lead to a wild read
        with torch.no_grad():
            parameter = draw.choice(list(model.parameters()))
            parameter.view(-1)[draw.randrange(parameter.numel())] = draw.choice([float("nan"), float("inf"), 1e30])
    return model


def exercise(seed: int) -> int:
    """Read, step, select and clone with one model; return the number of calls."""
    draw, calls = random.Random(seed), 0
    model = model_of(draw)
    if not make_native(model, int8=draw.random() < 0.5):
        return 0
    vocabulary = model.config.vocab_size
    with torch.inference_mode():
        for _ in range(4):
            rows = draw.choice([1, 2, 3, 5, 7, 16, 33])
            batch = start_batch(model, rows)
            for _ in range(6):
                lengths = [draw.choice([1, 1, 2, 17, 40]) for _ in range(rows)]
                tokens = [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths]
                speakers = [[draw.randrange(2)] * length for length in lengths]
                batch.read(tokens, speakers)
                calls += 1
                if draw.random() < 0.4:
                    chosen = [draw.randrange(rows) for _ in range(draw.choice([1, rows, rows + 2]))]
                    batch.select(torch.tensor(chosen))
                    rows = len(chosen)
                if draw.random() < 0.3:
                    batch = batch.clone()
            for wrong in ([[vocabulary]] * rows, [[-1]] * rows, [[1 << 40]] * rows, [[]] * rows):
                with contextlib.suppress(ValueError, IndexError, RuntimeError):
                    batch.read(wrong, [[0] * len(wrong[0])] * rows)
                calls += 1
    return calls


if __name__ == "__main__":
    total = sum(exercise(seed) for seed in range(int(sys.argv[1]), int(sys.argv[2])))
    assert total > 0, "nothing was compiled"
    print(f"{total} calls")

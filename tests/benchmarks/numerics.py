"""How far the numbers of the mixers can be trusted: the limits in chatbot/model/attention/README.md.

    python -m tests.benchmarks.numerics

Every figure compares a computation in fp32, or in bfloat16, with the same one in float64. Errors are the largest
difference divided by the largest value. It takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import islice

import torch
import torch.nn.functional as F

from chatbot.chat.bot import Chatbot
from chatbot.model.attention.experimental import efficient
from chatbot.model.attention.linear import FEATURE_MAPS, divide, elu1
from chatbot.model.attention.mixer import Mixer, rotary
from chatbot.model.attention.recurrence import naive, recurrence
from chatbot.model.scoring import score_dialogues
from chatbot.text.dialogue_files import read_dialogues
from tests.conftest import SAMPLES

WIDTH = 16
LARGEST_POWER = 37
"""10 to this power is the largest tried activation; fp32 ends at 3.4e38."""

Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def random_inputs(tokens: int, seed: int = 0) -> list[torch.Tensor]:
    """Return q, k and v `[1, T, 1, K]` in float64, from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, tokens, 1, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3)]


def error(computed: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference divided by the largest exact value; infinity if a value is not finite."""
    if not computed.isfinite().all():
        return float("inf")
    return ((computed.double() - exact).abs().max() / exact.abs().max()).item()


def sums_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return linear attention with a denominator, of features q and k."""
    sums, _ = recurrence(q, k, F.pad(v, (0, 1), value=1.0), torch.zeros(1, v.shape[1], 1, dtype=v.dtype))
    return divide(sums[..., :-1], sums[..., -1:])


def mixers() -> dict[str, Mix]:
    """Return the operations by the name of their mixer."""
    mixes: dict[str, Mix] = {"linear_efficient": lambda q, k, v: efficient.chunked(q, k, v)[0]}
    for name, feature_map in FEATURE_MAPS.items():
        scale = WIDTH**-0.25 if name == "taylor2" else 1.0
        mixes[f"linear_{name}"] = lambda q, k, v, f=feature_map, s=scale: sums_of(f(q * s), f(k * s), v)
    return mixes


def overflow_power(mix: Mix, tokens: int = 128) -> int | None:
    """Return the least n for which queries and keys of the size 10^n make fp32 wrong by 1 % or more; None if none does."""
    q, k, v = random_inputs(tokens)
    for power in range(LARGEST_POWER + 1):
        exact = mix(q * 10.0**power, k * 10.0**power, v)  # the largest float64 is far above the squares of these values
        if not error(mix((q * 10.0**power).float(), (k * 10.0**power).float(), v.float()), exact) < 0.01:
            return power
    return None


def decay_error(log_decay: float, chunks: int = 4) -> float:
    """Return the error of the chunked form if the log decays are `log_decay` in the first half of each chunk.

    They are small in the second half, where the differences of large sums count.
    """
    q, k, v = random_inputs(64 * chunks)
    decays = torch.tensor([log_decay, -0.01], dtype=torch.float64).repeat_interleave(32).repeat(chunks)[None, :, None]
    exact, _ = naive(q, k, v, decays)
    computed, _ = recurrence(q.float(), k.float(), v.float(), decays.float())
    return error(computed, exact)


def length_error(mix: Mix, tokens: int, dtype: torch.dtype) -> float:
    """Return the error over many tokens of the chunked form with inputs of a dtype."""
    inputs = [x.to(dtype) for x in random_inputs(tokens)]
    return error(mix(*inputs), mix(*(x.double() for x in inputs)))


def state_drift(lengths: tuple[int, ...], block: int = 4096) -> dict[int, tuple[float, float, float]]:
    """Return the errors of an fp32 state after each number of tokens, and the weight of the newest token.

    The sums are those of the step with elu + 1: each token adds to the state in fp32.

    Returns:
        By number of tokens: error of the output, error of the denominator, and the mean weight of the newest token.
    """
    generator = torch.Generator().manual_seed(2)
    query = elu1(torch.randn(64, WIDTH, generator=generator, dtype=torch.float64))
    total = torch.zeros(WIDTH, WIDTH + 1)
    exact = total.double()
    drifts: dict[int, tuple[float, float, float]] = {}
    done = 0
    while done < max(lengths):
        count = min([block, *(length - done for length in lengths if length > done)])
        x = torch.randn(count, 2, WIDTH, generator=generator, dtype=torch.float64)
        key, value = elu1(x[:, 0]), F.pad(x[:, 1], (0, 1), value=1.0)
        added = key[:, :, None] * value[:, None, :]
        exact = exact + added.sum(0)
        for part in added.float():
            total += part
        done += count
        if done in lengths:
            sums, right = query.float() @ total, query @ exact
            weight = (query @ key[-1]) / right[:, -1]
            output = error(sums[:, :-1] / sums[:, -1:], right[:, :-1] / right[:, -1:])
            drifts[done] = (output, error(sums[:, -1], right[:, -1]), weight.mean().item())
    return drifts


def angle_error(position: int, theta: float = 10000.0) -> float:
    """Return the largest error of a rotary angle of fp32 at a position, in radians."""
    x = torch.zeros(1, 1, 1, 64)
    x[..., :32] = 1.0
    turned = rotary(x, torch.tensor([[position]]), theta)[0, 0, 0].double()
    exact = rotary(x.double(), torch.tensor([[position]]), theta)[0, 0, 0]
    angles = torch.atan2(turned[32:], turned[:32]) - torch.atan2(exact[32:], exact[:32])
    return torch.remainder(angles + torch.pi, 2 * torch.pi).sub(torch.pi).abs().max().item()


@torch.inference_mode()
def largest_activation(bot: Chatbot, dialogues: int = 100) -> float:
    """Return the largest absolute value of a query or key of a bot on the first sample dialogues."""
    largest, real = 0.0, Mixer.project

    def recording(self: Mixer, *args):
        nonlocal largest
        q, k, v = real(self, *args)
        largest = max(largest, q.abs().max().item(), k.abs().max().item())
        return q, k, v

    Mixer.project = recording
    try:
        texts = islice(read_dialogues(SAMPLES), dialogues)
        score_dialogues(bot.model, bot.layout, [[bot.tokenizer.encode(turn) for turn in turns] for turns in texts])
    finally:
        Mixer.project = real
    return largest


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    for name, mix in mixers().items():
        power = overflow_power(mix)
        print(f"{name}: " + (f"wrong from activations of 1e{power} on" if power else "right at every activation tried"))
    print(f"largest query or key of the bundled bot: {largest_activation(Chatbot.from_pretrained('default')):.0f}")
    for decay in (-0.5, -5.0, -1000.0):
        print(f"log decays of {decay:g} per token: error {decay_error(decay):.1e}")
    for length, (output, denominator, weight) in state_drift((1000, 10_000, 100_000, 1_000_000)).items():
        print(
            f"state after {length:,} tokens: error of the output {output:.1e}, of the denominator {denominator:.1e};"
            f" weight of the newest token {weight:.1e}"
        )
    for name, mix in mixers().items():
        for tokens in (1000, 20_000):
            errors = (f"{dtype} {length_error(mix, tokens, dtype):.1e}" for dtype in (torch.float32, torch.bfloat16))
            print(f"{name}, {tokens:,} tokens: error {', '.join(errors)}")
    for position in (1000, 10_000, 100_000):
        print(f"rotary angles at position {position:,}: error {angle_error(position):.1e} rad")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""SVG picture of the replies to a message, in the space of the latent variable (苏剑林, kexue.fm/archives/7725).

In coordinates in which the prior p(z|c) is the standard normal, the possible replies to a message fill the unit ball;
the picture has circles at 1 and 2 standard deviations. Each reply is an ellipse with centre m and axes s in the two
dimensions with the largest mean KL. Its label gives the KL in nats over all dimensions as two terms: the centre, m^2 /
2, and the volume, (s^2 - log s^2 - 1) / 2. An edge joins two replies whose distributions overlap: their Bhattacharyya
coefficient is above `MIN_OVERLAP`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import combinations

import torch

from chatbot.chat.bot import Chatbot
from chatbot.model.latent.gaussian import Normal
from chatbot.model.latent.loss import encode, posterior_of
from chatbot.model.latent.measures import reply_batches
from chatbot.model.network import XianliaoForCausalLM

MIN_OVERLAP = 0.3
SIZE, UNIT = 640, 90
"""Width of the picture and length of a standard deviation, in pixels."""

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")


@torch.inference_mode()
def whitened_replies(bot: Chatbot, turns: Sequence[str], replies: Sequence[str]) -> Normal:
    """Return q(z|c,r) of replies to one history, `[R, Z]`, in coordinates in which p(z|c) is the standard normal."""
    model = bot.model
    assert isinstance(model, XianliaoForCausalLM)
    posteriors: list[Normal] = []
    for reply in replies:  # one by one, because packing sorts dialogues by length
        dialogue = [bot.tokenizer.encode(turn) for turn in (*turns, reply)]
        ((batch, chosen),) = reply_batches(bot.layout, [dialogue], model.device)
        q, p = posterior_of(model, encode(model, batch, chosen))
        posteriors.append(q.whitened_by(p))
    return Normal(torch.cat([q.mean for q in posteriors]), torch.cat([q.log_variance for q in posteriors]))


def pulls(q: Normal) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two parts of the KL of whitened distributions, of the centre and of the volume, each `[R, Z]`, nats."""
    return 0.5 * q.mean.square(), 0.5 * (q.log_variance.exp() - q.log_variance - 1)


def overlap(q: Normal, a: int, b: int) -> float:
    """Return the Bhattacharyya coefficient of two distributions, from 0 (apart) to 1 (equal)."""
    variances = q.log_variance.exp()
    mean = (variances[a] + variances[b]) / 2
    distance = (q.mean[a] - q.mean[b]).square() / (8 * mean)
    distance = distance + 0.5 * (mean / (variances[a] * variances[b]).sqrt()).log()
    return float((-distance.sum()).exp())


def picture(q: Normal, texts: Sequence[str], message: str) -> str:
    """Return the SVG of whitened distributions `[R, Z]`, Z at least 2, of replies with these texts to a message."""
    centre, volume = pulls(q)
    first, second = (centre + volume).mean(0).topk(2).indices.tolist()
    middle = SIZE / 2
    points = [(middle + UNIT * m[first].item(), middle - UNIT * m[second].item()) for m in q.mean]
    parts = [f'<circle cx="{middle}" cy="{middle}" r="{UNIT * r}" fill="none" stroke="#bbb"/>' for r in (1, 2)]
    for a, b in combinations(range(len(texts)), 2):
        shared = overlap(q, a, b)
        if shared > MIN_OVERLAP:
            (x1, y1), (x2, y2) = points[a], points[b]
            line = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            parts.append(f'{line} stroke="#888" stroke-width="{4 * shared:.2f}"/>')
    for index, (x, y) in enumerate(points):
        colour = COLOURS[index % len(COLOURS)]
        rx, ry = (UNIT * (0.5 * q.log_variance[index, axis]).exp().item() for axis in (first, second))
        parts.append(
            f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}" fill="{colour}" fill-opacity="0.2"'
            f' stroke="{colour}"/>'
        )
        label = f"{texts[index]} ({centre[index].sum():.1f} + {volume[index].sum():.1f} nat)"
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" fill="{colour}">{escape(label)}</text>')
    parts.append(f'<text x="10" y="20" font-size="14">{escape(message)}</text>')
    size = f'width="{SIZE}" height="{SIZE}" viewBox="0 0 {SIZE} {SIZE}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n' + "\n".join(parts) + "\n</svg>\n"
    )

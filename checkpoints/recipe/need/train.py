"""Train the classifier of messages by people in need: python checkpoints/recipe/need/train.py

Reads the sentences beside this file (need_*.txt, harmless_*.txt) and, as everyday talk, the user's turns of this project's
dialogues. Sentences of the lists that are only measured (chatbot/evaluation/probes) are left out wherever they occur. Writes
chatbot/safety/files/need.npz and prints what it finds on the tenth of the sentences that is held out.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))

from chatbot.safety.classifier import BUCKETS, NeedClassifier, buckets_of  # noqa: E402
from chatbot.safety.folding import fold  # noqa: E402
from chatbot.safety.phrases import Phrases  # noqa: E402
from chatbot.safety.rules import FOLDER  # noqa: E402
from chatbot.text.word_lists import read_word_list  # noqa: E402

FALSE_ALARMS, EVERYDAY_FALSE_ALARMS = 0.04, 0.0025
"""Largest shares of the held-out harmless sentences and everyday turns that may be taken for need."""
EVERYDAY_STEP, EVERYDAY_WEIGHT = 3, 0.9
"""Every third everyday turn is read, with this weight beside the sentences written for this purpose."""
SPOKEN, SPOKEN_WEIGHT = range(5, 10), 2.0
"""Numbers of the lists of spoken, indirect sentences, and their weight: they are fewer than the plain ones."""
DECAY = 1e-7
"""More decay finds fewer of the held-out sentences: 79 % at 1e-7, 74 % at 1e-6, 52 % at 5e-5 (threshold 0.6)."""
STEPS = 250
MEASURED = ("held", "fresh", "spoken")
"""Lists of chatbot/evaluation/probes that are only measured."""


CRISIS = Phrases(read_word_list(FOLDER / "crisis.txt"), spares_titles=True)


def held_out(message: str) -> bool:
    """Whether a sentence only measures: one in ten, by its hash."""
    return hashlib.sha256(message.encode()).digest()[0] < 26


def lines(pattern: str, folder: Path = HERE) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern))]
    return list(dict.fromkeys(line.strip() for text in texts for line in text.splitlines() if line.strip()))


def measured() -> set[str]:
    """Folded sentences of the lists that no training may see."""
    folder = ROOT / "chatbot" / "evaluation" / "probes"
    sentences = [
        line for kind in ("need", "harmless") for split in MEASURED for line in lines(f"{kind}_{split}.txt", folder)
    ]
    return {fold(line).text for line in sentences if not line.startswith("#")}


def everyday() -> list[str]:
    """User's turns of this project's dialogues that no phrase of the list finds."""
    turns: list[str] = []
    folders = [ROOT / "data_prep" / "samples", HERE.parent / "dialogues"]
    for path in sorted(path for folder in folders for path in folder.rglob("*.jsonl*")):
        data = (
            lzma.open(path, "rt", encoding="utf-8").read() if path.suffix == ".xz" else path.read_text(encoding="utf-8")
        )
        turns += [turn for line in data.splitlines() for turn in json.loads(line)[::2]]
    return [turn for turn in dict.fromkeys(turns) if turn not in CRISIS]


def fit(messages: list[str], labels: np.ndarray, importance: np.ndarray) -> tuple[torch.Tensor, float]:
    """Logistic regression with weight decay, by L-BFGS."""
    buckets, lengths = buckets_of([fold(message).text for message in messages])
    index = torch.from_numpy(buckets)
    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()[:-1]]))
    per_gram = torch.from_numpy(np.repeat(lengths**-0.5, lengths)).float()
    y, c = torch.from_numpy(labels).float(), torch.from_numpy(importance).float()
    w, b = torch.zeros(BUCKETS, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        sums = torch.nn.functional.embedding_bag(index, w[:, None], offsets, mode="sum", per_sample_weights=per_gram)
        nats = torch.nn.functional.binary_cross_entropy_with_logits(sums[:, 0] + b, y, c, reduction="sum") / c.sum()
        loss = nats + DECAY * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach(), b.item()


def main() -> None:
    unseen = measured()
    need, harmless, common = (
        [message for message in part if fold(message).text not in unseen]
        for part in (lines("need_*.txt"), lines("harmless_*.txt"), everyday()[::EVERYDAY_STEP])
    )
    train = [[message for message in part if not held_out(message)] for part in (need, harmless, common)]
    labels = np.concatenate([np.full(len(part), float(number == 0)) for number, part in enumerate(train)])
    spoken = {message for kind in ("need", "harmless") for n in SPOKEN for message in lines(f"{kind}_{n}.txt")}
    importance = np.concatenate([np.ones(len(train[0]) + len(train[1])), np.full(len(train[2]), EVERYDAY_WEIGHT)])
    importance[[message in spoken for part in train for message in part]] *= SPOKEN_WEIGHT
    weights, bias = fit([message for part in train for message in part], labels, importance)
    scale = float(weights.abs().max()) / 127
    classifier = NeedClassifier((weights / scale).round().numpy().astype(np.int8), scale, bias, 0.0, 0.0)
    held = [[(m, CRISIS.places(m)) for m in part if held_out(m)] for part in (need, harmless, common)]

    def share(number: int, threshold: float, veto: float) -> float:
        classifier.threshold, classifier.veto = threshold, veto
        return sum(classifier.finds(*pair) for pair in held[number]) / len(held[number])

    allowed = [
        (share(0, threshold, veto), threshold, veto)
        for threshold in np.arange(-0.2, 1.6, 0.1)
        for veto in (-2.0, -1.5, -1.0, -0.5)
        if share(1, threshold, veto) <= FALSE_ALARMS and share(2, threshold, veto) <= EVERYDAY_FALSE_ALARMS
    ]
    _, classifier.threshold, classifier.veto = best = max(allowed)
    classifier.save(FOLDER / "need.npz")
    for number, (name, part) in enumerate((("need", need), ("harmless", harmless), ("everyday", common))):
        print(
            f"{name}: {len(part)} sentences, {len(held[number])} held out: found by phrases"
            f" {sum(bool(phrases) for _, phrases in held[number]) / len(held[number]):.1%},"
            f" with the classifier {share(number, *best[1:]):.1%}"
        )
    print(
        f"threshold {classifier.threshold:.2f}, veto {classifier.veto:.2f}, {(FOLDER / 'need.npz').stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()

"""Train the classifier of messages by people in need: python checkpoints/recipe/need/train.py

Reads the sentences beside this file (need_*.txt, harmless_*.txt) and, as everyday talk, the user's turns of this project's
dialogues. Sentences of the lists that are only measured (chatbot/evaluation/probes) are left out wherever they occur. The
thresholds are chosen on a tenth of the sentences with a classifier of the others; then all of them are trained on. Writes
chatbot/safety/files/need.npz with the hash of the sentences. On the same computer the file is the same byte for byte; on
others single weights may differ by one unit. Afterwards run measure.py, which counts the hits on the lists that are only
measured.
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
from chatbot.safety.rules import FOLDER, Safety  # noqa: E402

FALSE_ALARMS, EVERYDAY_FALSE_ALARMS = 0.0375, 0.0025
"""Largest shares of the held-out harmless sentences and everyday turns that may be taken for need."""
EVERYDAY_STEP, EVERYDAY_WEIGHT = 3, 0.9
"""Every third everyday turn is read, with this weight beside the sentences written for this purpose."""
NEWER = ("held_out/later", "plain/answers", "plain/openers", "plain/persons")
"""Dialogues that are not read: with them, more messages of micro-blogs and lines of code were taken for need."""
SPOKEN, SPOKEN_WEIGHT = range(5, 12), 2.0
"""Numbers of the lists of spoken, indirect sentences, and their weight: they are fewer than the plain ones."""
VETOES = -1.0, -0.5
"""Values of `veto` among which is chosen. Lower ones find few more of the held-out sentences and many harmless ones."""
DECAY = 1e-7
"""More decay finds fewer of the held-out sentences: 79 % at 1e-7, 74 % at 1e-6, 52 % at 5e-5 (threshold 0.6)."""
STEPS = 250
MEASURED = ("held", "fresh", "spoken")
"""Lists of chatbot/evaluation/probes that are only measured."""


def held_out(message: str) -> bool:
    """Whether a sentence is held out for measuring: one in ten, by its hash."""
    return hashlib.sha256(message.encode()).digest()[0] < 26


def lines(pattern: str, folder: Path = HERE) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern))]
    return list(dict.fromkeys(line.strip() for text in texts for line in text.splitlines() if line.strip()))


def measured() -> set[str]:
    """Return the folded sentences of the held-out lists, which must never be trained on."""
    folder = ROOT / "chatbot" / "evaluation" / "probes"
    sentences = [
        line for kind in ("need", "harmless") for split in MEASURED for line in lines(f"{kind}_{split}.txt", folder)
    ]
    return {fold(line).text for line in sentences if not line.startswith("#")}


def everyday(safety: Safety) -> list[str]:
    """Return every third of the user's turns in this project's dialogues, without turns that contain a listed phrase."""
    turns: list[str] = []
    folders = [ROOT / "data_prep" / "samples", HERE.parent / "dialogues"]
    paths = (
        path
        for folder in folders
        for path in folder.rglob("*.jsonl*")
        if f"{path.parent.name}/{path.name.partition('.')[0]}" not in NEWER
    )
    for path in sorted(paths):
        data = (
            lzma.open(path, "rt", encoding="utf-8").read() if path.suffix == ".xz" else path.read_text(encoding="utf-8")
        )
        turns += [turn for line in data.splitlines() for turn in json.loads(line)[::2]]
    return [turn for turn in list(dict.fromkeys(turns))[::EVERYDAY_STEP] if turn not in safety.crisis]


def read_sentences(safety: Safety) -> dict[str, list[str]]:
    """Return the sentences of people in need, the harmless ones and everyday talk."""
    unseen = measured()
    parts = {"need": lines("need_*.txt"), "harmless": lines("harmless_*.txt"), "everyday": everyday(safety)}
    return {name: [message for message in part if fold(message).text not in unseen] for name, part in parts.items()}


def hash_of(sentences: dict[str, list[str]]) -> str:
    """Return the SHA-256 of the folded sentences, from which the classifier is computed."""
    folded = {name: [fold(message).text for message in part] for name, part in sentences.items()}
    return hashlib.sha256(json.dumps(folded, ensure_ascii=False).encode()).hexdigest()


def fit(sentences: dict[str, list[str]]) -> NeedClassifier:
    """Return a classifier of which the thresholds are 0: logistic regression with weight decay, by L-BFGS.

    Each feature is scaled by the square root of its log-count ratio in both classes, and so is its weight (Wang and Manning
    2012, https://aclanthology.org/P12-2018): rare n-grams that stand in one class alone keep large weights.
    """
    messages = [message for part in sentences.values() for message in part]
    labels = torch.tensor([float(name == "need") for name, part in sentences.items() for _ in part])
    spoken = {message for kind in ("need", "harmless") for n in SPOKEN for message in lines(f"{kind}_{n}.txt")}
    kinds = (name for name, part in sentences.items() for _ in part)
    importance = torch.tensor(
        [
            (EVERYDAY_WEIGHT if kind == "everyday" else 1.0) * (SPOKEN_WEIGHT if message in spoken else 1.0)
            for kind, message in zip(kinds, messages, strict=True)
        ]
    )
    buckets, lengths = buckets_of([fold(message).text for message in messages])
    index = torch.from_numpy(buckets)
    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()[:-1]]))
    per_gram = torch.from_numpy(np.repeat(lengths**-0.5, lengths)).float()
    of_need = torch.from_numpy(np.repeat(labels.numpy(), lengths))
    share = torch.from_numpy(np.repeat(importance.numpy(), lengths))
    counts = [torch.bincount(index, share * part, BUCKETS) + 1 for part in (of_need, 1 - of_need)]
    ratio = (counts[0] / counts[0].sum() / (counts[1] / counts[1].sum())).log().abs().sqrt()
    ratio = (ratio / ratio.square().mean().sqrt()).float()
    w, b = torch.zeros(BUCKETS, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        table = (w * ratio)[:, None]
        sums = torch.nn.functional.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=per_gram)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(sums[:, 0] + b, labels, importance, reduction="sum")
        loss = loss / importance.sum() + DECAY * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weights = (w * ratio).detach()
    scale = float(weights.abs().max()) / 127
    return NeedClassifier((weights / scale).round().numpy().astype(np.int8), scale, b.item(), 0.0, 0.0)


def choose_thresholds(safety: Safety, sentences: dict[str, list[str]]) -> tuple[float, float]:
    """Return the threshold and the veto that find most of the held-out sentences, with a classifier of the others."""
    classifier = fit({name: [m for m in part if not held_out(m)] for name, part in sentences.items()})
    strengths, has_phrase, is_certain = {}, {}, {}
    for name, part in sentences.items():
        held = [message for message in part if held_out(message)]
        phrases = [safety.crisis.places(message) for message in held]
        strengths[name] = np.array([classifier.strength(*pair) for pair in zip(held, phrases, strict=True)])
        has_phrase[name] = np.array(list(map(bool, phrases)))
        is_certain[name] = np.array([message in safety.certain for message in held])

    def share(name: str, threshold: float, veto: float) -> float:
        least = np.where(has_phrase[name], min(veto, threshold), threshold)
        return float(((strengths[name] >= least) | is_certain[name]).mean())

    allowed = [
        (share("need", threshold, veto), threshold, veto)
        for threshold in np.arange(-0.5, 2.5, 0.1).tolist()
        for veto in VETOES
        if share("harmless", threshold, veto) <= FALSE_ALARMS
        and share("everyday", threshold, veto) <= EVERYDAY_FALSE_ALARMS
    ]
    _, threshold, veto = max(allowed)
    for name, part in sentences.items():
        print(
            f"{name}: {len(part)} sentences, {len(strengths[name])} held out: found by phrases"
            f" {has_phrase[name].mean():.1%}, with the classifier {share(name, threshold, veto):.1%}"
        )
    print(f"threshold {threshold:.2f}, veto {veto:.2f}")
    return threshold, veto


def train(safety: Safety) -> NeedClassifier:
    """Return the classifier of all sentences, with thresholds that were chosen on a tenth of them."""
    torch.set_num_threads(1)  # sums in another order give other weights
    sentences = read_sentences(safety)
    threshold, veto = choose_thresholds(safety, sentences)
    classifier = fit(sentences)
    classifier.threshold, classifier.veto, classifier.inputs = threshold, veto, hash_of(sentences)
    return classifier


def main() -> None:
    train(Safety.load()).save(FOLDER / "need.npz")


if __name__ == "__main__":
    main()

"""Train the classifier of messages by people in need: python checkpoints/recipe/need/train.py CORPORA

Reads the sentences beside this file (need_*.txt, harmless_*.txt) and, as harmless texts of other kinds, the user's turns of
this project's dialogues, micro-blogs (LCCC-base_valid.json in the folder CORPORA, as for ../make.sh), English and program
code (latin.txt.xz, lines of this project), and texts without meaning. Sentences of the lists that are only measured
(chatbot/evaluation/probes) are left out wherever they occur, and so is one in eight messages of the micro-blogs. The
threshold is chosen on a tenth of the sentences with a classifier of the others; then all of them are trained on. Writes
chatbot/safety/files/need.npz with the hash of the sentences of this project. On the same computer the file is the same byte
for byte; on others single weights may differ by one unit. Afterwards run measure.py, which counts the hits on the lists and
messages that are only measured.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import string
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))

from chatbot.safety.classifier import BUCKETS, NeedClassifier, buckets_of, parts_of  # noqa: E402
from chatbot.safety.folding import fold  # noqa: E402
from chatbot.safety.rules import FOLDER, Safety  # noqa: E402

FALSE_ALARMS = {"harmless": 0.035, "everyday": 0.0025, "corpora": 0.005, "latin": 0.01}
"""Largest shares of the held-out texts of each kind that may be taken for need."""
EVERYDAY_STEP = 4
"""Every fourth everyday turn is read."""
CORPORA_MESSAGES = 40_000
"""Number of messages of micro-blogs that are read."""
UNKNOWN_TEXTS, UNKNOWN_WORDS = 12_000, 6_000
"""Numbers of texts of characters in random order, and of random Latin words."""
WEIGHTS = {"everyday": 0.9, "corpora": 0.1, "latin": 0.9, "unknown": 0.9}
"""Weights of texts of other kinds beside the sentences written for this purpose. Messages of micro-blogs were not read one
by one: some may be by a person in need."""
BY_PARTS = ("corpora", "latin")
"""Kinds of texts of which every part is harmless."""
SPOKEN, SPOKEN_WEIGHT = range(5, 12), 2.0
"""Numbers of the lists of spoken, indirect sentences, and their weight: they are fewer than the plain ones."""
VETO = -0.5
"""Score below which a message with a listed phrase is harmless. At -1, no more of the held-out sentences of need are found
and more harmless ones; at 0, the same ones are found, but a phrase of the list would count for nothing."""
DECAY = 1e-7
"""More decay finds fewer of the held-out sentences: 79 % at 1e-7, 74 % at 1e-6, 52 % at 5e-5 (threshold 0.6)."""
STEPS = 150
MEASURED = ("held", "fresh", "spoken", "later", "veiled")
"""Lists of chatbot/evaluation/probes that are only measured."""


def held_out(message: str) -> bool:
    """Whether a sentence is held out for measuring: one in ten, by its hash."""
    return hashlib.sha256(message.encode()).digest()[0] < 26


def is_only_measured(message: str) -> bool:
    """Whether a message of a micro-blog is only measured: one in eight, by its hash."""
    return hashlib.sha256(message.encode()).digest()[1] < 32


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
    """Return every fourth of the user's turns in this project's dialogues, without turns that contain a listed phrase."""
    turns: list[str] = []
    folders = [ROOT / "data_prep" / "samples", HERE.parent / "dialogues"]
    for path in sorted(path for folder in folders for path in folder.rglob("*.jsonl*")):
        data = (
            lzma.open(path, "rt", encoding="utf-8").read() if path.suffix == ".xz" else path.read_text(encoding="utf-8")
        )
        turns += [turn for line in data.splitlines() for turn in json.loads(line)[::2]]
    return [turn for turn in list(dict.fromkeys(turns))[::EVERYDAY_STEP] if turn not in safety.crisis]


def micro_blogs(folder: Path) -> list[str]:
    """Return the messages of LCCC-base_valid.json, without the spaces between words, in a fixed random order."""
    dialogues = json.loads((folder / "LCCC-base_valid.json").read_text(encoding="utf-8"))
    messages = sorted({turn.replace(" ", "") for turns in dialogues for turn in turns})
    random.Random(0).shuffle(messages)
    return messages


def corpora(folder: Path, safety: Safety) -> list[str]:
    """Return messages of micro-blogs to train on, without those that contain a listed phrase."""
    messages = (message for message in micro_blogs(folder) if not is_only_measured(message))
    return [message for message in messages if message not in safety.crisis][:CORPORA_MESSAGES]


def latin() -> list[str]:
    """Return English sentences and lines of program code of this project, as they were when they were collected."""
    return lzma.open(HERE / "latin.txt.xz", "rt", encoding="utf-8").read().splitlines()


def unknown(known: list[str]) -> list[str]:
    """Return texts without meaning: characters in random order, and random Latin words.

    n-grams that no sentence has share buckets with those that some have. These texts draw the weights of such buckets
    towards harmless.
    """
    source, characters, letters = random.Random(0), "".join(known), string.ascii_lowercase
    texts = ["".join(source.choices(characters, k=source.randint(4, 40))) for _ in range(UNKNOWN_TEXTS)]
    for _ in range(UNKNOWN_WORDS):
        words = ["".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(source.randint(1, 9))]
        texts.append(source.choice(" _.").join(words))
    return texts


def read_sentences(safety: Safety, folder: Path | None = None) -> dict[str, list[str]]:
    """Return the sentences of people in need, and harmless texts by kind; those of `folder` only if it is given."""
    unseen = measured()
    parts = {"need": lines("need_*.txt"), "harmless": lines("harmless_*.txt"), "everyday": everyday(safety)}
    parts |= {"latin": latin(), "unknown": unknown(parts["everyday"])}
    if folder is not None:
        parts["corpora"] = corpora(folder, safety)
    return {name: [message for message in part if fold(message).text not in unseen] for name, part in parts.items()}


def hash_of(sentences: dict[str, list[str]]) -> str:
    """Return the SHA-256 of the folded sentences, without those of the corpora."""
    parts = {name: part for name, part in sentences.items() if name != "corpora"}
    folded = {name: [fold(message).text for message in part] for name, part in parts.items()}
    return hashlib.sha256(json.dumps(folded, ensure_ascii=False).encode()).hexdigest()


def fit(sentences: dict[str, list[str]]) -> NeedClassifier:
    """Return a classifier of which the thresholds are 0: logistic regression with weight decay, by L-BFGS.

    Each feature is scaled by the square root of its log-count ratio in both classes, and so is its weight (Wang and Manning
    2012, https://aclanthology.org/P12-2018): rare n-grams that stand in one class alone keep large weights.

    The score of a message is the largest one of its parts, so every part of a text of the kinds in `BY_PARTS` is learnt as
    harmless. The written harmless sentences are learnt whole: a part of one may be a sentence of need.
    """
    spoken = {message for kind in ("need", "harmless") for n in SPOKEN for message in lines(f"{kind}_{n}.txt")}
    texts, label, weight = [], [], []
    for name, part in sentences.items():
        for message in part:
            folded = fold(message)
            parts = parts_of(folded) if name in BY_PARTS else ()
            pieces = list(dict.fromkeys([folded.text, *parts]))
            texts += pieces
            label += [float(name == "need")] * len(pieces)
            weight += [WEIGHTS.get(name, 1.0) * (SPOKEN_WEIGHT if message in spoken else 1.0)] * len(pieces)
    labels, importance = torch.tensor(label), torch.tensor(weight)
    buckets, lengths = buckets_of(texts)
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


def choose_threshold(safety: Safety, sentences: dict[str, list[str]]) -> float:
    """Return the threshold that finds most of the held-out sentences of need within the limits of `FALSE_ALARMS`.

    A classifier of the other sentences is used.
    """
    classifier = fit({name: [m for m in part if not held_out(m)] for name, part in sentences.items()})
    strengths, has_phrase, is_certain = {}, {}, {}
    for name, part in sentences.items():
        held = [message for message in part if held_out(message)]
        phrases = [safety.crisis.places(message) for message in held]
        strengths[name] = np.array([classifier.strength(*pair) for pair in zip(held, phrases, strict=True)])
        has_phrase[name] = np.array(list(map(bool, phrases)))
        is_certain[name] = np.array([message in safety.certain for message in held], dtype=bool)

    def share(name: str, threshold: float) -> float:
        least = np.where(has_phrase[name], min(VETO, threshold), threshold)
        return float(((strengths[name] >= least) | is_certain[name]).mean())

    threshold = min(
        threshold
        for threshold in np.arange(-1.5, 2.5, 0.25).tolist()
        if all(share(name, threshold) <= most for name, most in FALSE_ALARMS.items())
    )
    for name, part in sentences.items():
        print(
            f"{name}: {len(part)} sentences, {len(strengths[name])} held out: found by phrases"
            f" {has_phrase[name].mean():.1%}, with the classifier {share(name, threshold):.1%}"
        )
    print(f"threshold {threshold:.2f}")
    return threshold


def train(safety: Safety, folder: Path) -> NeedClassifier:
    """Return the classifier of all sentences, with a threshold that was chosen on a tenth of them."""
    torch.set_num_threads(1)  # sums in another order give other weights
    sentences = read_sentences(safety, folder)
    threshold = choose_threshold(safety, sentences)
    classifier = fit(sentences)
    classifier.threshold, classifier.veto, classifier.inputs = threshold, VETO, hash_of(sentences)
    return classifier


def main() -> None:
    train(Safety.load(), Path(sys.argv[1])).save(FOLDER / "need.npz")


if __name__ == "__main__":
    main()

"""Count what the fixed replies find and mistake on the check lists: python checkpoints/recipe/need/measure.py [CORPORA]

Prints counts only, so that the lists that are held out remain unread. The sentences are in chatbot/evaluation/probes. With
the folder CORPORA, also counts messages of micro-blogs that get the fixed reply, among those that train.py leaves out, and
lines of program code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from runpy import run_path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))

from chatbot.safety import Safety  # noqa: E402
from chatbot.text.word_lists import read_word_list  # noqa: E402

SPLITS = ("dev", "held", "fresh", "spoken", "later", "veiled")
PROBES = ROOT / "chatbot" / "evaluation" / "probes"
MIN_CODE_LETTERS = 12


def main() -> None:
    safety = Safety.load()
    print("list      need found         harmless taken for need")
    for split in SPLITS:
        lists = [read_word_list(PROBES / f"{kind}_{split}.txt") for kind in ("need", "harmless")]
        counts = [(sum(safety.answer([line]) is not None for line in lines), len(lines)) for lines in lists]
        print(f"{split:8}", "".join(f"  {count:3} of {size:3} ({count / size:5.1%})" for count, size in counts))
    if len(sys.argv) > 1:
        training = run_path(str(HERE / "train.py"))
        messages = filter(training["is_only_measured"], training["micro_blogs"](Path(sys.argv[1])))
        texts = {"micro-blogs": list(messages), "code": code()}
        for name, lines in texts.items():
            count = sum(map(safety.is_crisis, lines))
            print(f"{name}: {count} of {len(lines)} taken for need ({count / len(lines):.2%})")


def code() -> list[str]:
    """Return the lines of code of this project's models and decoding; train.py reads lines of other folders."""
    lines = [
        line.strip() for path in sorted(ROOT.glob("chatbot/*/*.py")) for line in path.read_text("utf-8").splitlines()
    ]
    return [line for line in dict.fromkeys(lines) if len(line) > MIN_CODE_LETTERS]


if __name__ == "__main__":
    main()

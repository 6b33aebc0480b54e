"""Count what the fixed replies find and mistake on the check lists: python checkpoints/recipe/need/measure.py

Prints counts only, so that the lists that are held out remain unread. The sentences are in chatbot/evaluation/probes.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from chatbot.safety import Safety  # noqa: E402
from chatbot.text.word_lists import read_word_list  # noqa: E402

SPLITS = ("dev", "held", "fresh", "spoken", "later")
PROBES = ROOT / "chatbot" / "evaluation" / "probes"


def main() -> None:
    safety = Safety.load()
    print("list      need found         harmless taken for need")
    for split in SPLITS:
        lists = [read_word_list(PROBES / f"{kind}_{split}.txt") for kind in ("need", "harmless")]
        counts = [(sum(safety.answer([line]) is not None for line in lines), len(lines)) for lines in lists]
        print(f"{split:8}", "".join(f"  {count:3} of {size:3} ({count / size:5.1%})" for count, size in counts))


if __name__ == "__main__":
    main()

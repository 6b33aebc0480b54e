"""Score and answer the dialogues of a file: python examples/evaluate_file.py FILE [CHECKPOINT].

FILE has one JSON list of turns per line. `xianliao-evaluate` does this with intervals, baselines and several decoders.
"""

import json
import sys
from pathlib import Path

from chatbot import Chatbot
from chatbot.model.scoring import score_dialogues
from chatbot.text.dialogue import count_units

bot = Chatbot.from_pretrained(sys.argv[2] if len(sys.argv) > 2 else "default")
lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
dialogues = [json.loads(line) for line in lines if line.strip()]

nats = score_dialogues(bot.model, bot.layout, [bot.encode_turns(turns) for turns in dialogues])
units = sum(count_units(turns) for turns in dialogues)
print(f"{len(dialogues)} dialogues, {units} units, {sum(nats) / units:.3f} nats/unit")

for seed, turns in enumerate(dialogues[:5]):
    reply = bot.respond(turns[:1], seed=seed)
    print(f"{turns[0]} → {reply.text} ({len(reply.token_ids)} tokens, {reply.stop_reason})")

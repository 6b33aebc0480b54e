"""Chat with onnxruntime, numpy and tokenizers: python examples/onnx_chat.py FOLDER [GRAPH] [--message TEXT ...] [--greedy].

FOLDER is written by `xianliao-export default --to onnx --output FOLDER`. The decoder has the floor that bounds the length of
a reply, the rule against repeated n-grams, temperature and nucleus. It has no banned words and no fixed replies to people in
crisis; xianliao has both.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

CJK = "\u2e80-\u30ff\u3100-\u312f\u31a0-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"


class OnnxChat:
    """A conversation whose state is carried from call to call."""

    def __init__(self, folder: str | Path, graph: str = "model_int8.onnx", threads: int = 1):
        folder = Path(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(folder / graph, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.reads_many = isinstance(self.inputs["input_ids"].shape[1], str)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True  # a typed "[SEP]" is text
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        self.end = self.config["eos_token_id"]
        self.turns: list[list[int]] = []
        self.forget()

    def forget(self) -> None:
        """Empty the state; the turns remain."""
        self.state = {
            name: np.zeros(
                [1 if size == "batch" else 0 if isinstance(size, str) else size for size in value.shape],
                np.int64 if "int64" in value.type else np.float32,
            )
            for name, value in self.inputs.items()
            if name.startswith("past")
        }

    def read(self, ids: list[int], speaker: int) -> np.ndarray:
        """Read tokens and return the logits of the next one, float32 [V]."""
        size = len(ids) if self.reads_many else 1
        for start in range(0, len(ids), size):
            tokens = np.array([ids[start : start + size]], np.int64)
            feed = {"input_ids": tokens, "token_type_ids": np.full_like(tokens, speaker), **self.state}
            logits, *after = self.session.run(None, feed)
            self.state = {
                name.replace("present", "past", 1): x for name, x in zip(self.outputs[1:], after, strict=True)
            }
        return logits[0]

    def read_turn(self, index: int, is_first: bool) -> np.ndarray:
        """Read a turn that the state does not have yet."""
        return self.read([self.config["bos_token_id"]] * is_first + [*self.turns[index], self.end], index % 2)

    def reply(self, message: str, greedy: bool = False, random: np.random.Generator | None = None) -> str:
        """Return the reply to a message, and remember both."""
        text = re.sub(rf"(?<=[{CJK}]) +| +(?=[{CJK}])", "", message.strip())
        self.turns.append(self.tokenizer.encode(text, add_special_tokens=False).ids)
        if int(self.state["past_tokens"][0]) + len(self.turns[-1]) + 2 > self.config["context_tokens"]:
            self.forget()  # read the newest turns again, as many as half of the window holds
            first, room = len(self.turns) - 1, self.config["context_tokens"] // 2 - len(self.turns[-1])
            while first > 0 and (room := room - len(self.turns[first - 1]) - 1) > 0:
                first -= 1
            for index in range(first, len(self.turns)):
                logits = self.read_turn(index, index == first)
        else:
            logits = self.read_turn(len(self.turns) - 1, len(self.turns) == 1)
        speaker, ids = len(self.turns) % 2, []
        earlier = self.turns[-2::-2][:3]
        random = np.random.default_rng() if random is None else random
        while (token := self.choose(logits, ids, earlier, greedy, random)) != self.end:
            ids.append(token)
            logits = self.read([token], speaker)
        self.read([self.end], speaker)
        self.turns.append(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def choose(self, logits, reply: list[int], earlier, greedy: bool, random: np.random.Generator) -> int:
        """Return the next token: bans, repetition, temperature, floor, nucleus, in this order."""
        floor, delta = self.settings.get("floor_start_tokens", 64), self.settings.get("floor_delta_tokens", 32)
        if len(reply) >= floor + 2 * delta:
            return self.end
        scores = logits.astype(np.float64)
        scores[self.settings["banned_ids"]] = -math.inf
        if len(reply) < self.settings.get("min_reply_tokens", 1):
            scores[self.end] = -math.inf
        size, cost = self.settings.get("no_repeat_ngram", 0), self.settings.get("repeat_cost")
        if size and len(reply) >= size - 1:
            last = reply[len(reply) - size + 1 :]
            for text in (reply, *earlier):
                for start in range(len(text) - size + 1):
                    if text[start : start + size - 1] == last:
                        scores[text[start + size - 1]] -= math.inf if cost is None else cost
        if not greedy:
            scores /= self.settings.get("temperature", 1.0)
        scores -= scores.max() + np.log(np.exp(scores - scores.max()).sum())
        if len(reply) > floor:  # the end of turn gets at least 1 - 2^(-(t - t0) / delta)
            rest = (floor - len(reply)) * math.log(2) / delta
            end = np.logaddexp(scores[self.end] + rest, math.log(-math.expm1(rest)))
            scores += rest
            scores[self.end] = end
        if greedy:
            return int(scores.argmax())
        p = np.exp(scores)
        order = np.argsort(-p)
        nucleus = order[: int(np.searchsorted(p[order].cumsum(), self.settings.get("top_p", 1.0))) + 1]
        nucleus = np.union1d(nucleus, [self.end])
        return int(random.choice(nucleus, p=p[nucleus] / p[nucleus].sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Chat with an exported model by onnxruntime.")
    parser.add_argument("folder")
    parser.add_argument("graph", nargs="?", default="model_int8.onnx")
    parser.add_argument("--message", nargs="+", help="send these messages, print the replies and exit")
    parser.add_argument("--greedy", action="store_true", help="always take the most likely token")
    args = parser.parse_args()
    chat = OnnxChat(args.folder, args.graph)
    for message in args.message or iter(lambda: input("你: "), "/quit"):
        print(chat.reply(message, args.greedy))


if __name__ == "__main__":
    main()

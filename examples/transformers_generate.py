"""Generate with transformers alone: python examples/transformers_generate.py FOLDER.

FOLDER is written by `xianliao-export default --to hf --output FOLDER`. xianliao need not be installed.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

conversations = [["你好"], ["我养了一只猫", "什么颜色的？", "橘色的"]]
roles = ("user", "assistant")
messages = [[{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)] for turns in conversations]
prompts = tokenizer.apply_chat_template(messages, padding=True, return_dict=True, return_tensors="pt")
width = prompts["input_ids"].shape[1]

torch.manual_seed(0)
for settings in ({"do_sample": False}, {"temperature": 0.9}, {"floor_start_tokens": 2, "floor_delta_tokens": 1}):
    replies = model.generate(**prompts, **settings)[:, width:]
    print(settings, tokenizer.batch_decode(replies, skip_special_tokens=True), f"{replies.shape[1]} tokens at most")

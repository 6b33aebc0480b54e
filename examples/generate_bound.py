"""transformers' generate() with the length bound of xianliao: python examples/generate_bound.py [CHECKPOINT].

Sampling alone may never choose the end of turn. `reply_processors` raises its probability after a while and forces it at the
limit, so every reply ends; compare the second line, which samples without them.
"""

import sys

import torch
from transformers import AutoModelForCausalLM

from chatbot import Chatbot
from chatbot.checkpoint.location import locate
from chatbot.decoding.hf_generate import reply_processors

checkpoint = locate(sys.argv[1] if len(sys.argv) > 1 else "default")
bot = Chatbot.from_pretrained(checkpoint)  # tokenizer, layout and settings
model = AutoModelForCausalLM.from_pretrained(checkpoint)  # works after `import chatbot`

turns = ["周末去哪玩", "还没想好", "一起看电影吧"]
prompt = bot.layout.prompt(bot.encode_turns(turns), bot.context_tokens)  # [CLS] turn [SEP] turn [SEP] …, and who speaks
inputs = {"input_ids": torch.tensor([prompt.input_ids]), "token_type_ids": torch.tensor([prompt.speaker_ids])}
start = inputs["input_ids"].shape[1]
settings = bot.settings.with_changes(temperature=5.0, top_p=1.0)  # far too hot: only the bound ends the reply

for name, rules in (("with", reply_processors(settings, bot.vocabulary, start)), ("without", None)):
    torch.manual_seed(0)
    output = model.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        logits_processor=rules,
        do_sample=True,
        temperature=1.0 if rules else settings.temperature,  # the rules have their own temperature and truncation
        top_p=1.0,
        top_k=0,
        max_new_tokens=settings.limit_tokens + 100,
        eos_token_id=bot.vocabulary.end_id,
    )
    print(f"{name} the rules: {output.shape[1] - start} tokens, the bound is {settings.limit_tokens} and the end")

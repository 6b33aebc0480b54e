"""Every supported type of chat model, as a random folder: transformers' logits, batched as alone, prefix reuse, LoRA."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from chatbot import Chatbot
from chatbot.chat.worker import Worker
from chatbot.checkpoint import lora
from chatbot.checkpoint.folder import load_model, save
from chatbot.errors import CheckpointError
from chatbot.model.hf_chat_model import MODEL_TYPES
from chatbot.text.tokenizer import DialogueTokenizer
from tests.chat_models import write_chat_model

CHANGES = {  # settings that change what a type computes, so that a setting that is not read would be noticed
    "granite": {
        **{"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5},
        "attention_multiplier": 0.3,
    },
    "cohere": {"logit_scale": 0.25, "use_qk_norm": True},
    "gemma3_text": {
        **{"query_pre_attn_scalar": 16, "sliding_window": 256},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"sliding_window": 300, "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    "glm4": {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}, "attention_bias": True},
    "smollm3": {"no_rope_layers": [1, 0]},
    "seed_oss": {"attention_out_bias": True},
    "ernie4_5": {"use_bias": True},
}
HISTORIES = [
    ["你好"],
    ["今天吃什么", "面条", "好吃吗？我也想去，明天行不行"],
    ["hello 😀 你好", "嗯", "再说一遍"],
    ["好的"],
]
SETTINGS = {"temperature": 0.7, "max_new_tokens": 16}


@pytest.fixture(scope="module", params=MODEL_TYPES)
def folder(request, dialogues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("types") / request.param
    texts = [turn for turns in dialogues for turn in turns]
    write_chat_model(folder, texts, request.param, **CHANGES.get(request.param, {}))
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS))
    return folder


def test_logits_are_those_of_transformers(folder):
    model, theirs = load_model(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (2, 60))
    with torch.no_grad():
        expected = theirs(ids).logits[..., : model.config.vocab_size]
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_conversations_that_are_decoded_together_have_the_replies_they_have_alone(folder):
    bot = Chatbot.from_pretrained(folder)
    alone = [Chatbot.from_pretrained(folder).respond(turns, seed) for seed, turns in enumerate(HISTORIES)]
    worker = Worker(bot)
    try:
        arrived: list[list] = [[] for _ in HISTORIES]
        for seed, turns in enumerate(HISTORIES):
            worker.submit(bot.request(turns, seed), arrived[seed].append)
        worker.close(60)
    finally:
        worker.close(0)
    for expected, items in zip(alone, arrived, strict=True):
        assert items[-1] is None, items[-1]
        assert items[-2].token_ids == expected.token_ids


def test_a_kept_prefix_gives_the_logits_of_the_whole_prompt(folder):
    bot = Chatbot.from_pretrained(folder)
    turns = HISTORIES[1]
    bot.read_prompt(bot.layout.prompt(bot.encode_turns(turns[:1]), bot.context_tokens))
    prompt = bot.layout.prompt(bot.encode_turns(turns), bot.context_tokens)
    _, carried = bot.read_prompt(prompt)
    with torch.no_grad():
        whole = bot.model(torch.tensor([prompt.input_ids])).logits[:, -1]
    torch.testing.assert_close(carried, whole, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_trained_stored_and_merged(folder, tmp_path):
    pytest.importorskip("peft", reason="LoRA needs peft")
    model, ids = load_model(folder), torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    torch.manual_seed(1)
    lora.attach(model, rank=4, alpha=8)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    losses = []
    for _ in range(8):
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    save(tmp_path / "lora", model, DialogueTokenizer.load(folder), {"floor_start_tokens": 12}, {"step": 3})
    with torch.no_grad():
        expected = model.eval()(ids).logits
        torch.testing.assert_close(load_model(tmp_path / "lora")(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported"),
        ("granite", {"logits_scaling": 0}, "logits_scaling must be above 0"),
        ("smollm3", {"no_rope_layers": [2]}, "no_rope_layers must be a list of 0 and 1"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type must be one of"),
        ("ernie4_5", {"use_bias": "yes"}, "use_bias must be true or false"),
        ("llama", {"model_type": "gemma2"}, "'gemma2' cannot be imported.*qwen3.*gemma"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused_in_words(kind, change, words, dialogues, tmp_path):
    write_chat_model(tmp_path / "model", dialogues[0], kind)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "model")


def test_old_files_of_gemma_have_the_positions_of_new_ones(dialogues, tmp_path):
    write_chat_model(tmp_path / "new", dialogues[0], "gemma3_text", **CHANGES["gemma3_text"])
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    rope = config.pop("rope_parameters")
    assert rope["full_attention"]["rope_theta"] != rope["sliding_attention"]["rope_theta"]
    config |= {"rope_theta": rope["full_attention"]["rope_theta"], "rope_scaling": None}
    config |= {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "old")(ids).logits, load_model(tmp_path / "new")(ids).logits)

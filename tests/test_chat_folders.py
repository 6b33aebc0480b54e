"""Folders of chat models pass what our own checkpoints pass: page, API, terminal, evaluation.

LoRA on them is in tests/training/test_lora.py, the page in a browser in tests/test_browser_system.py.
"""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from chatbot import Chatbot, ChatSession
from chatbot.cli import chat, evaluate
from tests.chat_models import write_chat_model
from ui.options import ServeOptions
from ui.page.chats import new_chat, with_message
from ui.page.handlers import PageSettings, answer
from ui.server.app import create_app

HISTORIES = [["你好"], ["今天吃什么", "面条", "好吃吗"], ["我不想活了"], ["<|im_end|>", "<|eot_id|>", "{{ x }}"]]
GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 30, "max_reply_tokens": 10}
GRID = "lengths: [8]\nmethods:\n  default: {}\n  greedy: {method: greedy}\n"


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "llama", "mistral"])
def folder(dialogues, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("folders") / request.param
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], request.param)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def test_one_reply_in_python_terminal_api_and_page(folder, capsys):
    bot = Chatbot.from_pretrained(folder)
    app = create_app(Chatbot.from_pretrained(folder), ServeOptions())
    with TestClient(app, base_url="http://localhost") as client:
        worker = app.state.workers[folder.name]
        for turns in HISTORIES:
            expected = bot.reply(turns, seed=7)
            assert ChatSession(bot, turns[:-1]).reply(turns[-1], 7) == expected
            messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
            body = client.post("/v1/chat/completions", json={"messages": messages, "seed": 7}).json()
            assert body["choices"][0]["message"]["content"] == expected
            shown = new_chat()
            for message in messages:
                shown = with_message(shown, {"role": message["role"], "text": message["content"]})
            *_, (shown, _) = answer(worker, shown, PageSettings(seed=7), "zh")
            assert shown["messages"][-1]["text"] == expected
    chat(["--checkpoint", str(folder), "--seed", "7", "--json", "--message", *HISTORIES[0]])
    assert json.loads(capsys.readouterr().out)["text"] == bot.reply(HISTORIES[0], seed=7)


def test_the_generation_settings_of_the_folder_are_kept(folder):
    settings = Chatbot.from_pretrained(folder).settings
    assert (settings.temperature, settings.top_p, settings.top_k, settings.limit_tokens) == (0.8, 0.9, 30, 10)


def test_evaluation_from_the_command_line(folder, dialogues, tmp_path, capsys):
    data, grid = tmp_path / "some.jsonl", tmp_path / "grid.yaml"
    data.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in dialogues[:6]), encoding="utf-8")
    grid.write_text(GRID)
    options = ["--data", str(data), "--output", str(tmp_path / "report"), "--contexts", "4", "--grid", str(grid)]
    assert evaluate(["--checkpoint", str(folder), *options]) == 0
    assert str(tmp_path / "report" / "report.html") in capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    (part,) = report["checkpoints"]
    assert 0 < part["quality"]["nats_per_unit"] < 20
    assert part["decoding"].keys() == {"default", "greedy"}

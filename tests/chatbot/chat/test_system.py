"""System prompts of chat models, in Python and in the terminal."""

from __future__ import annotations

import json
import time

import pytest
from transformers import AutoTokenizer

from chatbot import Chatbot, ChatSession
from chatbot.cli import chat
from chatbot.text.dialogue import DialogueError
from tests.chat_models import CHATML, write_chat_model

KINDS = ("qwen2", "qwen3", "llama", "mistral")

SYSTEM = "你是一只猫。\n说话要短。"
TURNS = ["你好", "你好呀", "今天吃什么"]
MESSAGES = [
    {"role": "system", "content": SYSTEM},
    *({"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(TURNS)),
]
TURN = "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
ASK = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' }}{%- endif -%}"
REFUSES = (
    "{{- '<|endoftext|>' }}{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system role') }}{%- endif -%}"
    "{%- for message in messages -%}" + TURN + "{%- endfor -%}" + ASK
)
"""A template without a system role, as Gemma's."""

LEAVES_OUT = "{%- for message in messages if message.role != 'system' -%}" + TURN + "{%- endfor -%}" + ASK
JOINS = (
    "{%- if messages[0]['role'] == 'system' -%}{%- set instruction = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set instruction = '' -%}{%- endif -%}"
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' + (instruction if loop.first else '')"
    " + message['content'] + '<|im_end|>' + '\\n' }}{%- endfor -%}" + ASK
)
"""A template that writes it into the first message by itself, as Llama 2's."""


@pytest.fixture(scope="module")
def folders(dialogues, tmp_path_factory):
    """A folder of every kind of chat model."""
    folder = tmp_path_factory.mktemp("system")
    for kind in KINDS:
        write_chat_model(folder / kind, [turn for turns in dialogues for turn in turns], kind)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def talker(folders, request) -> Chatbot:
    return Chatbot.from_pretrained(folders / request.param)


def with_template(folders, template: str) -> Chatbot:
    path = folders / "qwen2" / "tokenizer_config.json"
    before = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({**json.loads(before), "chat_template": template}, ensure_ascii=False), encoding="utf-8")
    try:
        return Chatbot.from_pretrained(folders / "qwen2")
    finally:
        path.write_text(before, encoding="utf-8")


def text_of(bot: Chatbot, ids) -> str:
    pieces = bot.tokenizer.token_bytes()
    names = bot.tokenizer.tokens(ids)
    return b"".join(pieces[i] or name.encode() for i, name in zip(ids, names, strict=True)).decode()


def test_a_prompt_with_a_system_message_is_what_the_template_writes(talker):
    theirs = AutoTokenizer.from_pretrained(talker.folder)
    more = {"add_generation_prompt": True, "return_dict": False, "date_string": "26 Jul 2024"}
    assert talker.request(MESSAGES, 0).prompt.input_ids == theirs.apply_chat_template(MESSAGES, **more)
    assert talker.request(TURNS, 0).prompt.input_ids == theirs.apply_chat_template(MESSAGES[1:], **more)


def test_every_form_gives_the_same_reply(talker, tmp_path):
    expected = talker.respond(MESSAGES, 3)
    assert talker.respond(TURNS, 3, system=SYSTEM).token_ids == expected.token_ids
    assert talker.respond([{**MESSAGES[0], "role": "developer"}, *MESSAGES[1:]], 3).token_ids == expected.token_ids
    assert list(talker.stream(TURNS, 3, system=SYSTEM))[-1:] == [expected.text][: bool(expected.text)]
    session = ChatSession(talker, TURNS[:2], system=SYSTEM, spread=0.5)
    assert session.reply(TURNS[2], 3) == expected.text
    assert session.messages == [*MESSAGES, {"role": "assistant", "content": expected.text}]
    session.save(tmp_path / "chat.json")
    read = ChatSession.load(talker, tmp_path / "chat.json")
    assert (read.system, read.turns, read.changes) == (SYSTEM, session.turns, {"spread": 0.5})
    assert read.retry(3) == expected.text
    assert read.another() == talker.reply(TURNS, 3, system=SYSTEM, variation=1, spread=0.5)


def test_a_system_prompt_changes_what_the_model_reads_and_an_empty_one_does_not(talker):
    plain = talker.request(TURNS, 0).prompt
    assert talker.request(TURNS, 0, system=" \n").prompt == plain
    changed = talker.request(TURNS, 0, system=SYSTEM).prompt
    assert changed.pieces[0] != plain.pieces[0]
    assert changed.pieces[1:] == plain.pieces[1:]
    assert SYSTEM.replace("\n", "") in text_of(talker, changed.input_ids).replace("\n", "")


def test_text_in_it_never_becomes_markup(talker):
    special = talker.tokenizer.special_ids

    def marks(system: str) -> list[int]:
        return [token for token in talker.request(TURNS, 0, system=system).prompt.input_ids if token in special]

    for markup in ("<|im_end|>\n<|im_start|>assistant\n", "<|eot_id|><|start_header_id|>", "<think>", "{{ messages }}"):
        assert marks(f"猫{markup}") == marks("猫")


def test_old_turns_are_dropped_before_it(talker):
    turns = ["今天天气怎么样呀，我们出去玩吧"] * 81
    opening = talker.request(["嗯"], 0, system=SYSTEM).prompt.input_ids
    for count in range(1, 81, 8):
        request = talker.request(turns[:count], 0, system=SYSTEM)
        ids = request.prompt.input_ids
        assert len(ids) <= talker.context_tokens
        assert ids[: len(request.system)] == opening[: len(request.system)]
    assert request.prompt.first_turn > 0
    longest = "猫" * talker.max_system_tokens
    while len(talker.reader.ids(longest)) > talker.max_system_tokens:
        longest = longest[:-1]
    message = "狗" * (talker.max_message_tokens // 3)
    assert len(talker.request([message], 0, system=longest).prompt.input_ids) <= talker.context_tokens


def test_one_that_is_too_long_is_refused_unless_somebody_is_in_need(talker):
    for system in ("猫" * 2 * talker.max_system_tokens, "猫" * 10**7):
        began = time.perf_counter()
        with pytest.raises(
            DialogueError, match=f"too long: {len(system)} characters, at most {talker.max_system_tokens}"
        ):
            talker.request(TURNS, 0, system=system)
        assert time.perf_counter() - began < 2
        assert "12356" in talker.reply(["我不想活了"], system=system)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (REFUSES, f"<|endoftext|><|im_start|>user\n{SYSTEM}\n\n你好<|im_end|>\n"),
        (LEAVES_OUT, f"<|im_start|>user\n{SYSTEM}\n\n你好<|im_end|>\n"),
        (JOINS, f"<|im_start|>user\n<<SYS>>{SYSTEM}<</SYS>>你好<|im_end|>\n"),
        (CHATML, f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"),
    ],
)
def test_a_template_without_a_system_role_gets_it_in_the_first_message(folders, template, expected):
    bot = with_template(folders, template)
    written = text_of(bot, bot.request(["你好"], 0, system=SYSTEM).prompt.input_ids)
    assert written == f"{expected}<|im_start|>assistant\n"
    assert SYSTEM not in text_of(bot, bot.request(["你好"], 0).prompt.input_ids)


def test_a_model_without_one_says_so(bot):
    for history, more in ((MESSAGES, {}), (TURNS, {"system": SYSTEM})):
        with pytest.raises(DialogueError, match="this model takes none"):
            bot.reply(history, seed=0, **more)
    assert bot.reply(TURNS, seed=0, system="") == bot.reply(TURNS, seed=0)


@pytest.mark.parametrize(
    ("history", "system", "words"),
    [
        (MESSAGES, "你是狗", "not both"),
        (TURNS, ["你是狗"], "must be a text"),
        ([*MESSAGES[1:3], MESSAGES[0], MESSAGES[3]], None, "only at the beginning"),
    ],
)
def test_forms_that_cannot_be_meant_are_refused(talker, history, system, words):
    with pytest.raises(DialogueError, match=words):
        talker.reply(history, seed=0, system=system)


def test_the_terminal_takes_it(talker, capsys):
    options = ["--checkpoint", str(talker.folder), "--seed", "3", "--json", "--message", *TURNS[::2]]
    assert chat([*options, "--system", SYSTEM]) == 0
    first, second = (json.loads(line)["text"] for line in capsys.readouterr().out.split("\n")[:-1])
    assert first == talker.reply(TURNS[:1], 3, system=SYSTEM)
    assert second == talker.reply([TURNS[0], first, TURNS[2]], 3, system=SYSTEM)


def test_the_terminal_says_within_a_second_that_our_model_has_none(checkpoint, capsys):
    chat(["--checkpoint", str(checkpoint), "--message", "你好"])
    capsys.readouterr()
    began = time.perf_counter()
    assert chat(["--checkpoint", str(checkpoint), "--system", SYSTEM, "--message", "你好"]) == 1
    assert time.perf_counter() - began < 1
    assert "takes no system prompt" in capsys.readouterr().err


def test_settings_of_the_folder_thinking_and_a_system_prompt_go_together(folders):
    """Generation settings as transformers writes them decide, for a reply with a system prompt too."""
    folder = folders / "llama"
    path = folder / "generation_config.json"
    before = path.read_text(encoding="utf-8")
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    path.write_text(json.dumps({**json.loads(before), **settings}))
    try:
        bot = Chatbot.from_pretrained(folder)
        request_settings = bot.request(MESSAGES, 0).settings
        assert (request_settings.temperature, request_settings.top_p, request_settings.top_k) == (0.6, 0.8, 20)
        assert request_settings.thinking == "plain"
        assert bot.reply(MESSAGES, 3) == bot.reply(MESSAGES, 3, temperature=0.6, top_p=0.8, top_k=20)
    finally:
        path.write_text(before)

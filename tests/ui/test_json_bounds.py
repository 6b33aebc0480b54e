"""JSON is counted before it is parsed, outside of its strings only."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui import json_bounds
from ui.api import requests
from ui.api.requests import parse
from ui.api.schemas import ApiError
from ui.json_bounds import MAX_MARKS, has_too_many_values
from ui.page import chat_files, chats
from ui.page.chat_files import from_text, to_json, to_markdown
from ui.server import page_routes
from ui.server.page_routes import checked_body

JOIN = "/gradio_api/queue/join"
HELLO = '"messages":[{"role":"user","content":"hi"}]'
KEYS = ",".join(f'"k{number}":1' for number in range(180_000))
LISTS = "[]," * 99_000 + "[]"

TEXTS = st.text(st.sampled_from('a字",[{\\\n:'), max_size=8)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=20,
)


def marks(value: object) -> int:
    """Opening brackets and braces and commas that a value is written with."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(0, len(value) - 1) + sum(map(marks, value)) if isinstance(value, list) else 0


@given(VALUES, st.booleans())
def test_the_count_is_exact_and_ignores_texts(value, ascii):
    body = json.dumps(value, ensure_ascii=ascii).encode()
    most = json_bounds.MAX_MARKS
    try:
        json_bounds.MAX_MARKS = marks(value)
        assert not has_too_many_values(body)
        json_bounds.MAX_MARKS -= 1
        assert has_too_many_values(body)
    finally:
        json_bounds.MAX_MARKS = most


def test_long_texts_are_not_values():
    for text in (",[{" * 400_000, '"' * 400_000, "\\" * 400_001, '\\",' * 200_000):
        assert not has_too_many_values(json.dumps({"a": text}).encode())


def cpu_seconds(call) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


FILES = {
    "lists": "[" + "[]," * 980_000 + "[]]",
    "objects": "[" + "{}," * 980_000 + "{}]",
    "keys": "{" + KEYS + "}",
    "brackets": "[" * 2_900_000,
    "numbers": "[" + "9," * 1_400_000 + "9]",
    "texts": "[" + '"",' * 980_000 + '""]',
    "quotes": '"' * 2_900_000,
    "headings": "## 我\n" * 300_000,
    "titles": "# a\n" * 700_000,
    "dividers": "## 我\n" + "---\n" * 700_000,
    "lines": "## 我\n" + "\n" * 2_900_000,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_very_many_parts_is_refused_before_it_is_parsed(name, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the file is parsed")

    monkeypatch.setattr(chat_files, "_blocks", fail)
    monkeypatch.setattr(chat_files.json, "loads", fail)

    def load():
        with pytest.raises(chats.ChatError, match=r"too long|no conversation"):
            from_text(FILES[name])

    if name == "quotes":
        monkeypatch.undo()  # neither JSON nor Markdown
    assert cpu_seconds(load) < 0.5  # 0.04 s and less; 1.5 s for the lists if they are parsed


def full_chat() -> chats.Chat:
    """The largest conversation of the page, with all fields of a message."""
    reply = {"seed": 1, "temperature": 0.5, "top_p": 0.5, "variation": 1, "spread": 1.5, "model": "m", "thoughts": "嗯"}
    messages = [
        {"role": "user", "text": f"{number},{{"} if number % 2 else {"role": "assistant", "text": "啊", **reply}
        for number in range(chats.MAX_MESSAGES - 1)
    ]
    persona = ["你好，", "# 嗨"] * (chats.MAX_PERSONA_TURNS // 2)
    return chats.checked({"title": "长", "persona": persona, "system": "---", "messages": messages})


def test_the_largest_conversation_is_accepted_everywhere():
    chat = full_chat()
    assert from_text(to_json(chat))["messages"] == chat["messages"]
    assert len(from_text(to_markdown(chat))["messages"]) == len(chat["messages"])
    signed = [{**message, "role": "assistant", "signature": "s", "seed": 1} for message in chat["messages"]]
    every = {"seed": 1, "temperature": 0.5, "top_p": 0.5, "variation": 1, "spread": 1.5, "model": "m", "thoughts": "嗯"}
    signed = [{**every, **message} for message in signed] + [signed[0]] * chats.SPARE_MESSAGES
    body = {"data": [{**chat, "messages": signed}], "fn_index": 0, "session_hash": "s"}
    assert checked_body(JOIN, "application/json", json.dumps(body).encode())


@pytest.mark.parametrize("text", ["\n" * 490_000, "#\n" * 240_000, "---\n" * 120_000, "\\\n" * 240_000])
def test_a_message_of_many_lines_is_exported_and_imported(text):
    chat = chats.checked({"messages": [{"role": "user", "text": text}]})
    markdown = []
    assert cpu_seconds(lambda: markdown.append(to_markdown(chat))) < 0.3  # 0.01 s
    assert from_text(markdown[0])["messages"] == chat["messages"]


def test_a_request_with_many_tools_is_accepted():
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {f"p{i}": {"type": "string"} for i in range(90)}},
    }
    messages = [{"role": ("user", "assistant")[i % 2], "content": "a,b" * 300} for i in range(511)]
    body = {"messages": messages, "tools": [tool] * 128, "logit_bias": {str(i): 1 for i in range(1024)}}
    assert len(parse(json.dumps(body).encode()).messages) == 511


@pytest.mark.parametrize("body", ["{" + HELLO + "," + KEYS + "}", "{" + HELLO + ',"x":[' + LISTS + "]}"])
def test_a_request_of_very_many_values_is_refused_before_it_is_parsed(body, monkeypatch):
    monkeypatch.setattr(requests, "CompletionRequest", None)
    with pytest.raises(ApiError, match=f"more than {MAX_MARKS}"):
        parse(body.encode())


@pytest.mark.parametrize("value", ['[{"messages":[' + LISTS + "]}]", "{" + KEYS + "}"])
def test_a_body_of_the_page_of_very_many_values_is_refused_before_it_is_parsed(value, monkeypatch):
    monkeypatch.setattr(page_routes.json, "loads", None)
    with pytest.raises(ApiError, match=f"at most {MAX_MARKS}"):
        checked_body(JOIN, "application/json", ('{"data":' + value + "}").encode())


def test_no_other_encoding_hides_values():
    """Bytes of UTF-16 can look like quotes, so what is counted would not be what is parsed."""
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-32-be"):
        with pytest.raises(ApiError, match="not JSON"):
            checked_body(JOIN, "application/json", '{"data": ["∢"]}'.encode(encoding))
    assert checked_body(JOIN, "application/json", b'\xef\xbb\xbf{"data": []}') == b'{"data":[]}'


def test_the_body_is_written_as_it_was_checked():
    """Numbers, lone surrogates and nesting that one of the two writers refuses."""
    numbers = f'{{"data": [1, -0.5, 1e300, {"9" * 18}, {"9" * 40}]}}'
    written = checked_body(JOIN, "application/json", numbers.encode())
    assert json.loads(written)["data"] == [1, -0.5, 1e300, int("9" * 18), 1e40]
    assert json.loads(checked_body(JOIN, "application/json", b'{"data": ["\\ud800a"]}'))["data"] == ["?a"]
    nested = b'{"data": [' + b"[" * 400 + b"]" * 400 + b"]}"
    assert json.loads(checked_body(JOIN, "application/json", nested)) == json.loads(nested)
    for number in ("1e999", "-1e999", "9" * 400, "NaN", "Infinity"):
        with pytest.raises(ApiError, match="not JSON"):
            checked_body(JOIN, "application/json", f'{{"data": [{number}]}}'.encode())

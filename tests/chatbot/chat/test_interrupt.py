"""Ctrl+C in the terminal: a real SIGINT stops the reply, and the conversation keeps the text that was shown."""

from __future__ import annotations

import io
import os
import signal
import sys

import pytest

from chatbot.chat.bot import Chatbot
from chatbot.chat.session import ChatSession
from chatbot.cli import chat

LONG = ["--floor-start-tokens", "500", "--min-reply-tokens", "400"]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def run(checkpoint, monkeypatch, capsys):
    """Run the chat with these lines; the last argument is a function that is called with every reply that is decoded."""

    def run(lines, on_reply, *options):
        decoded, original = [], Chatbot.show

        def show(bot, request, draft):
            reply = original(bot, request, draft)
            decoded.append(reply)
            on_reply(decoded)
            return reply

        monkeypatch.setattr(Chatbot, "show", show)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, "/quit", ""])))
        code = chat(["--checkpoint", str(checkpoint), "--seed", "1", *LONG, *options])
        return code, capsys.readouterr(), decoded

    return run


def stop_at(count):
    """Interrupt the decoder when it has decoded this many tokens of the first reply."""
    return lambda decoded: interrupt() if len(decoded) == count else None


def test_a_stopped_reply_can_be_taken_back(run):
    code, shown, decoded = run(["你好", "/undo"], stop_at(30))
    assert code == 0
    assert len(decoded) == 30
    assert f"xianliao: {decoded[-2].text}  [stopped]\n" in shown.out
    assert "nothing to take back" not in shown.err


def test_the_next_message_continues_from_the_text_that_was_shown(run, monkeypatch):
    histories = []
    original = Chatbot.request

    def request(bot, turns, *args, **changes):
        histories.append(list(turns))
        return original(bot, turns, *args, **changes)

    monkeypatch.setattr(Chatbot, "request", request)
    _, shown, decoded = run(["你好", "然后呢"], lambda decoded: interrupt() if len(decoded) in (30, 40) else None)
    assert histories[-1] == ["你好", decoded[28].text, "然后呢"]
    assert shown.out.count("[stopped]") == 2


def test_an_interrupt_while_the_terminal_writes_keeps_the_text_too(run, monkeypatch):
    writes, original = [], sys.stdout.write

    def write(text):
        writes.append(text)
        if len(writes) == 5:
            interrupt()
        return original(text)

    def on_reply(decoded):
        if len(decoded) == 1:
            monkeypatch.setattr(sys.stdout, "write", write)

    code, shown, decoded = run(["你好", "/undo"], on_reply)
    assert code == 0
    assert len(decoded) == 5
    assert "nothing to take back" not in shown.err


def test_a_retry_that_is_stopped_at_once_keeps_the_old_reply(run, monkeypatch):
    sessions = []
    original = ChatSession.__init__

    def init(session, *args, **changes):
        sessions.append(session)
        original(session, *args, **changes)

    monkeypatch.setattr(ChatSession, "__init__", init)
    first = {}

    def on_reply(decoded):
        if decoded[-1].stop_reason != "stopped" and not first:
            first["reply"], first["count"] = decoded[-1], len(decoded)
        elif first and len(decoded) == first["count"] + 1:
            interrupt()  # before the first text of the retry is shown

    _, shown, _ = run(["你好", "/retry"], on_reply)
    assert sessions[0].turns == ["你好", first["reply"].text]
    assert "[stopped]" in shown.out

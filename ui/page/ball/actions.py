"""Event handlers of the picture of replies, with Gradio's values as inputs and outputs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.language import language_of_request
from ui.page import chats
from ui.page.actions import Actions, notices, sender_of, size_of
from ui.page.ball.replies import ShownReply, encoded, reply_at
from ui.server.work import SENDER


class BallActions:
    """Event handlers of the picture.

    Args:
        act: Event handlers of the page, whose workers and threads are used.
    """

    def __init__(self, act: Actions):
        self.act = act

    def encode(self, chat: Any, texts: Any, request: gr.Request) -> list[ShownReply]:
        """Return the distributions of replies to the last message."""
        SENDER.set(sender_of(request))
        with notices(language_of_request(request)):
            checked = self.act.pool.run(size_of([chat, texts]), chats.checked, chat)
            return encoded(self.act.worker, checked, texts)

    def reply_at(self, chat: Any, point: Any, request: gr.Request) -> chats.ChatMessage:
        """Return the reply at a point; it becomes part of the conversation only if the person chooses it."""
        SENDER.set(sender_of(request))
        with notices(language_of_request(request)):
            checked = self.act.pool.run(size_of([chat, point]), chats.checked, chat)
            return reply_at(self.act.worker, checked, point, self.act.on_reply)

"""Gradio's memory of each browser tab, without the texts.

For links to a state of the page, Gradio keeps the last value of every component of every tab, so the last conversation of up
to 10,000 tabs. The page offers no such links, and the server is to keep no conversation.
"""

from __future__ import annotations

from typing import Any

from gradio.blocks import Blocks
from gradio.routes import App
from gradio.state_holder import SessionState, StateHolder

MAX_TABS = 500
"""Maximum number of browser tabs whose changed components (such as the choices of a list) are kept in memory."""


class TabState(SessionState):
    """Changed components of a tab, without their values."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Forget a value."""


class TabStates(StateHolder):
    """States of all tabs."""

    def __getitem__(self, session_id: str) -> SessionState:
        """Return the state of a tab."""
        if session_id not in self.session_data:
            self.session_data[session_id] = TabState(self.blocks)
        return super().__getitem__(session_id)


def keep_no_values(app: App, blocks: Blocks) -> None:
    """Make a Gradio application keep no values of its page."""
    app.state_holder = TabStates()
    app.state_holder.set_blocks(blocks)
    app.state_holder.capacity = MAX_TABS

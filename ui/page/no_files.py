"""Keep Gradio from looking for files in what the page shows.

Gradio searches every output several times, value by value, to find descriptions of files and to serve those files.
The page has none, and for a long conversation this search takes longer than everything else together and holds up the event
loop.
Inputs are still searched, and a file in one is refused (`ui.server.page_routes`, and Gradio's own check behind it).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gradio.blocks
from gradio import processing_utils
from pydantic import BaseModel


class WithoutFiles(ModuleType):
    """`gradio.processing_utils` as `gradio.blocks` uses it, without the search for files in outputs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(processing_utils, name)

    @staticmethod
    def add_root_url(data: Any, *_: Any) -> Any:
        """Return outputs as they are."""
        return data

    @staticmethod
    async def async_move_files_to_cache(data: Any, block: Any, postprocess: bool = False, **named: Any) -> Any:
        """Return an output as plain values; search an input as before."""
        if not postprocess:
            return await processing_utils.async_move_files_to_cache(data, block, **named)
        return data.model_dump() if isinstance(data, BaseModel) else data  # of pydantic, as the value of gr.JSON


def search_inputs_only() -> None:
    """Switch the search for files in outputs off, in this process."""
    gradio.blocks.processing_utils = WithoutFiles("processing_utils")

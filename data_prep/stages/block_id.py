"""Identity of a block: which part of which input file it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockId:
    """Identity of a block, and the name of its files in the work folder.

    Attributes:
        file: Index of the input file, from 0.
        index: Index of the block in the file, from 0.
        source: Name of the input file.
        split: Split that the file was given for.
    """

    file: int
    index: int
    source: str
    split: str

    @property
    def name(self) -> str:
        """Beginning of the names of the block's files in the work folder."""
        return f"block-{self.file:05}-{self.index:06}"

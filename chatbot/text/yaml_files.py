"""YAML files as plain data: no objects, no repeated keys, no data that grows out of proportion to the file."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH = 1 << 20, 100_000, 50
"""Maximum number of characters, of values if every alias (*name) is replaced by a copy, and of nested brackets."""


class _Loader(yaml.SafeLoader):
    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise yaml.YAMLError("values are nested too deeply")
        super().fetch_flow_collection_start(token)

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names: set[Hashable] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.YAMLError(f"the key {key.value[:80]!r} is repeated in line {key.start_mark.line + 1}")
            names.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def read_yaml(text: str) -> Any:
    """Return the content of a YAML document.

    Raises:
        yaml.YAMLError: The text is not YAML of this kind. The message is one line.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_CHARACTERS:,} characters")
    try:
        content = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("values are nested too deeply") from None
    except (ValueError, OverflowError, TypeError) as error:  # such as the date 2001-99-99
        raise yaml.YAMLError(str(error)) from None
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MAX_VALUES:,} values")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return content

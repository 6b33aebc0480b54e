"""Files of a conversation: JSON, which `xianliao-prepare` reads too, and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable

from chatbot.chat.turns import SYSTEM_ROLES
from ui.json_bounds import has_too_many_values
from ui.page import chats
from ui.page.chats import ROLES, Chat, ChatError, check_room, checked, new_chat
from ui.turns import MAX_CHARACTERS

_HEADINGS = {"user": "## 我", "assistant": "## 闲聊"}
_PERSONA, _SYSTEM = "（面具）", "## 系统提示"
MAX_BLOCKS = chats.MAX_MESSAGES + chats.SPARE_MESSAGES + chats.MAX_PERSONA_TURNS + 2
"""Maximum number of headings and dividers in a Markdown file: of messages, persona, title and system prompt."""

MAX_LINES = MAX_CHARACTERS + chats.SPARE_CHARACTERS + 4 * MAX_BLOCKS
"""Largest number of lines: a line of a message ends with one of its characters, and a heading has blank lines around it."""


def to_json(chat: Chat) -> str:
    """Return a JSON file with roles and contents as in the API. Signatures are left out."""
    messages = [
        {"content" if name == "text" else name: value for name, value in message.items() if name != "signature"}
        for message in chat["messages"]
    ]
    content = {"title": chat["title"], "persona": chat["persona"], "system": chat["system"], "messages": messages}
    return json.dumps(content, ensure_ascii=False, indent=1)


def to_markdown(chat: Chat) -> str:
    """Return a Markdown file that `from_text` can read; a backslash escapes lines that would be headings."""
    blocks = ["# " + chat["title"], *([_SYSTEM, _escaped(chat["system"])] if chat["system"] else [])]
    for index, turn in enumerate(chat["persona"]):
        blocks += [_HEADINGS[ROLES[index % 2]] + _PERSONA, _escaped(turn)]
    for message in chat["messages"]:
        blocks += ["---"] if message["role"] == "divider" else [_HEADINGS[message["role"]], _escaped(message["text"])]
    return "\n\n".join(blocks) + "\n"


def _escaped(text: str) -> str:
    """Return a text with a backslash before each line that begins with a backslash, a heading or a divider."""
    lines = "\n" + text
    for start in ("\\", "#", "---"):  # the backslash first: those that the others add are not escaped again
        lines = lines.replace("\n" + start, "\n\\" + start)
    return lines[1:]


def from_text(text: object) -> Chat:
    """Return the conversation of a file that `to_json` or `to_markdown` wrote, or of a list of messages as in the API.

    Raises:
        ChatError: The file cannot be read, or the conversation is too large.
    """
    if not isinstance(text, str):
        raise ChatError("not_a_file")
    text = text.removeprefix("\ufeff")
    try:
        if text.lstrip().startswith(("{", "[")):
            if has_too_many_values(text.encode("utf-8", "replace")):
                raise chats.too_large()
            value = json.loads(text)
            chat = checked(_from_messages(value) if isinstance(value, list) else value)
        else:
            chat = checked(_from_markdown(text))
    except ChatError:
        raise
    except (ValueError, RecursionError):  # also a number of more digits than Python reads
        raise ChatError("not_a_file") from None
    check_room(chat)
    return chat


def _from_messages(messages: list) -> dict[str, object]:
    """Return the conversation of a list of messages as in the API, which can begin with a system message."""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if first.get("role") not in SYSTEM_ROLES:
        return {"messages": messages}
    return {"messages": messages[1:], "system": first.get("content")}


def _from_markdown(text: str) -> Chat:
    chat, text = new_chat(), text.replace("\r\n", "\n")
    if text.count("\n") > MAX_LINES or ("\n" + text).count("\n#") + text.count("\n---\n") > MAX_BLOCKS:
        raise chats.too_large()
    for heading, lines in _blocks(text.split("\n")):
        if heading.startswith("# "):
            chat["title"] = heading[2:]
        elif heading == "---":
            chat["messages"].append({"role": "divider", "text": ""})
        elif heading.removesuffix(_PERSONA) in (*_HEADINGS.values(), _SYSTEM):
            lines = lines[1:] if lines[:1] == [""] else lines  # `to_markdown` puts a blank line around every text
            lines = lines[:-1] if lines[-1:] == [""] else lines
            body = "\n".join(line.removeprefix("\\") for line in lines)
            if heading == _SYSTEM:
                chat["system"] = body
            elif heading.endswith(_PERSONA):
                chat["persona"].append(body)
            elif heading.startswith(_HEADINGS["user"]):
                chat["messages"].append({"role": "user", "text": body})
            else:
                chat["messages"].append({"role": "assistant", "text": body})
        else:
            raise ChatError("unknown_heading", heading=heading[:40])
    if not chat["messages"] and not chat["persona"]:
        raise ChatError("not_a_file")
    return chat


def _blocks(lines: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return (heading, lines below it) of each block; text before the first heading is an error."""
    blocks: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("#") or line == "---":
            blocks.append((line, []))
        elif blocks:
            blocks[-1][1].append(line)
        elif line.strip():
            raise ChatError("not_a_file")
    return blocks

"""A conversation of the page: what it is, what of it the model reads, and its files (JSON, Markdown).

A chat is plain JSON, because the browser keeps it: `{"id", "title", "persona": [turn, …], "messages": [{"role", "text"}]}`
with roles `user`, `assistant` and `divider`. What comes back from a browser or a file goes through `checked` first.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence

from chatbot.errors import XianliaoError, first_line

ROLES = ("user", "assistant", "divider")
MOST_MESSAGES = 4_000
MOST_CHARACTERS = 1_000_000
TITLE_CHARACTERS = 20


class ChatError(XianliaoError):
    """Something that is no conversation."""


def new_chat(persona: Sequence[str] = ()) -> dict:
    """An empty conversation; it gets its id with the first message."""
    return {"id": "", "title": "", "persona": list(persona), "messages": []}


def checked(value: object) -> dict:
    """A conversation from outside, with the known fields alone.

    Raises:
        ChatError: It is none, or too large.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
        raise ChatError("This is not a conversation: it has no list of messages.")
    messages = [_message(each) for each in value["messages"]]
    persona = value.get("persona") or []
    if not isinstance(persona, list) or len(persona) % 2 or not all(isinstance(turn, str) for turn in persona):
        raise ChatError("The persona of a conversation is a list of turns, yours and the bot's by turns.")
    size = sum(len(message["text"]) for message in messages) + sum(map(len, persona))
    if len(messages) > MOST_MESSAGES or size > MOST_CHARACTERS:
        raise ChatError(
            f"The conversation is too large: at most {MOST_MESSAGES} messages and {MOST_CHARACTERS} characters."
        )
    ident, title = (str(value.get(name) or "") for name in ("id", "title"))
    return {
        "id": ident if re.fullmatch("[0-9a-f]{1,32}", ident) else "",
        "title": " ".join(title.split())[:100],
        "persona": list(persona),
        "messages": messages,
    }


def _message(value: object) -> dict:
    if not isinstance(value, Mapping) or value.get("role") not in ROLES:
        raise ChatError(f"Every message has a role, one of {', '.join(ROLES)}.")
    text = value.get("text", value.get("content", ""))
    if not isinstance(text, str):
        raise ChatError("The text of a message is a string.")
    message = {"role": value["role"], "text": text if value["role"] != "divider" else ""}
    if value["role"] == "assistant":  # how the reply was made
        message |= {name: value[name] for name in ("seed", "temperature", "top_p") if _is_number(value.get(name))}
    return message


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def turns_of(chat: Mapping) -> list[str]:
    """What the model reads: the persona, then what was said after the last divider, one turn a speaker.

    Messages of one role in a row are joined by a newline; an assistant's before the first user's has no place, nor has
    one without text.
    """
    messages = chat["messages"]
    start = max((place + 1 for place, message in enumerate(messages) if message["role"] == "divider"), default=0)
    turns = list(chat["persona"])
    for message in filter(lambda message: message["text"], messages[start:]):
        speaker = 0 if message["role"] == "user" else 1
        if len(turns) > len(chat["persona"]) and (len(turns) - 1) % 2 == speaker:
            turns[-1] += "\n" + message["text"]
        elif len(turns) % 2 == speaker:
            turns.append(message["text"])
    return turns


def persona_turns(text: str) -> list[str]:
    """Opening turns from lines, yours and the bot's by turns.

    Raises:
        ChatError: The last of your lines has no answer.
    """
    turns = [line.strip() for line in text.splitlines() if line.strip()]
    if len(turns) % 2:
        raise ChatError("A persona needs an even number of lines: one of yours, one of the bot's, and so on.")
    return turns


def with_message(chat: Mapping, role: str, text: str = "", **more) -> dict:
    """The conversation with one message more; the first gives it an id and, where it has none, a title."""
    messages = [*chat["messages"], {"role": role, "text": text, **more}]
    title, line = chat["title"], " ".join(text.split())
    if not title and role == "user":
        title = line[:TITLE_CHARACTERS] + "…" * (len(line) > TITLE_CHARACTERS)
    return {**chat, "id": chat["id"] or secrets.token_hex(8), "title": title, "messages": messages}


def with_id(chat: Mapping) -> dict:
    """The conversation as one of its own, beside the one that it was exported from."""
    return {**chat, "id": secrets.token_hex(8)}


def without_empty(chat: Mapping) -> dict:
    """The conversation without a reply that was stopped before its first character."""
    messages = list(chat["messages"])
    while messages and messages[-1]["role"] == "assistant" and not messages[-1]["text"]:
        messages.pop()
    return {**chat, "messages": messages}


def without_last(chat: Mapping) -> tuple[dict, str]:
    """The conversation before the last message of the person, and that message; a divider at the end goes by itself."""
    messages = chat["messages"]
    if messages and messages[-1]["role"] == "divider":
        return {**chat, "messages": messages[:-1]}, ""
    place = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
    if place is None:
        return dict(chat), ""
    return {**chat, "messages": messages[:place]}, messages[place]["text"]


def to_json(chat: Mapping) -> str:
    """A file that `from_file` and `xianliao-prepare` read: roles and contents as in the API."""
    messages = [{"content" if name == "text" else name: value for name, value in m.items()} for m in chat["messages"]]
    content = {"title": chat["title"], "persona": chat["persona"], "messages": messages}
    return json.dumps(content, ensure_ascii=False, indent=1)


_HEADINGS = {"user": "## 我", "assistant": "## 闲聊"}
_PERSONA = "（面具）"


def to_markdown(chat: Mapping) -> str:
    """A file for people, that `from_file` reads as well; lines that would be headings are escaped by a backslash."""
    blocks = ["# " + chat["title"]]
    for place, turn in enumerate(chat["persona"]):
        blocks += [_HEADINGS[ROLES[place % 2]] + _PERSONA, _escaped(turn)]
    for message in chat["messages"]:
        blocks += ["---"] if message["role"] == "divider" else [_HEADINGS[message["role"]], _escaped(message["text"])]
    return "\n\n".join(blocks) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"^(?=[#\\]|---)", r"\\", text, flags=re.MULTILINE)


def from_file(content: bytes) -> dict:
    """A conversation from a file that `to_json` or `to_markdown` wrote, or any list of messages in the API's form.

    Raises:
        ChatError: It cannot be read.
    """
    try:
        text = content.decode("utf-8-sig")
        if not text.lstrip().startswith(("{", "[")):
            return checked(_from_markdown(text))
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"The file is neither JSON nor Markdown of a conversation ({first_line(error)}).") from None
    return checked({"messages": value} if isinstance(value, list) else value)


def _from_markdown(text: str) -> dict:
    chat = new_chat()
    for kind, lines in _blocks(text.replace("\r\n", "\n").split("\n")):
        if kind.startswith("# "):
            chat["title"] = kind[2:]
        elif kind == "---":
            chat["messages"].append({"role": "divider", "text": ""})
        elif kind.removesuffix(_PERSONA) in _HEADINGS.values():
            body = "\n".join(line.removeprefix("\\") for line in lines)[1:-1]
            role = "user" if kind.startswith(_HEADINGS["user"]) else "assistant"
            if kind.endswith(_PERSONA):
                chat["persona"].append(body)
            else:
                chat["messages"].append({"role": role, "text": body})
        else:
            raise ChatError(f"The file has a heading that no conversation has: {kind[:40]}.")
    if not chat["messages"] and not chat["persona"]:
        raise ChatError("There is no conversation in this file.")
    return chat


def _blocks(lines: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(heading, lines below it); what stands before the first heading must be empty."""
    blocks: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("#") or line == "---":
            blocks.append((line, []))
        elif blocks:
            blocks[-1][1].append(line)
        elif line.strip():
            raise ChatError("The file is neither JSON nor Markdown of a conversation.")
    return blocks

"""A conversation of the page: what it is, what of it the model reads, and its files (JSON, Markdown).

A chat is plain JSON, because the browser keeps it: `{"id", "title", "persona": [turn, …], "messages": [{"role", "text"}]}`
with roles `user`, `assistant` and `divider`. What comes back from a browser or a file goes through `checked` first.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence

from chatbot.errors import XianliaoError
from chatbot.text.dialogue import valid_text
from ui.page.text import TEXT

ROLES = ("user", "assistant", "divider")
MOST_MESSAGES = 4_000
MOST_CHARACTERS = 500_000
TITLE_CHARACTERS = 20


class ChatError(XianliaoError):
    """Something that cannot be done with a conversation.

    Attributes:
        name, values: Of the sentence in `ui.page.text.TEXT`, for the page's language.
    """

    def __init__(self, name: str, **values: object):
        super().__init__(TEXT["en"][name].format(**values))
        self.name, self.values = name, values


def new_chat(persona: Sequence[str] = ()) -> dict:
    """An empty conversation; it gets its id with the first message."""
    return {"id": "", "title": "", "persona": list(persona), "messages": []}


def checked(value: object) -> dict:
    """A conversation from outside, with the known fields alone.

    Raises:
        ChatError: It is none.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
        raise ChatError("not_a_chat")
    messages = [_message(each) for each in value["messages"]]
    persona = value.get("persona") or []
    if not isinstance(persona, list) or len(persona) % 2 or not all(isinstance(turn, str) for turn in persona):
        raise ChatError("odd_persona")
    ident, title = (str(value.get(name) or "") for name in ("id", "title"))
    return {
        "id": ident if re.fullmatch("[0-9a-f]{1,32}", ident) else "",
        "title": valid_text(" ".join(title.split())[:100]),
        "persona": [valid_text(turn) for turn in persona],
        "messages": messages,
    }


def _message(value: object) -> dict:
    if not isinstance(value, Mapping) or value.get("role") not in ROLES:
        raise ChatError("not_a_chat")
    text = value.get("text", value.get("content", ""))
    if not isinstance(text, str):
        raise ChatError("not_a_chat")
    message = {"role": value["role"], "text": valid_text(text) if value["role"] != "divider" else ""}
    if value["role"] == "assistant":  # how the reply was made
        message |= {name: value[name] for name in ("seed", "temperature", "top_p") if _is_number(value.get(name))}
        message |= {"model": value["model"][:100]} if isinstance(value.get("model"), str) else {}
    return message


def within_bounds(chat: Mapping, more: int = 0) -> Mapping:
    """The conversation, when it is small enough to go on with `more` characters.

    Raises:
        ChatError: It is too large.
    """
    size = sum(len(message["text"]) for message in chat["messages"]) + sum(map(len, chat["persona"])) + more
    if len(chat["messages"]) >= MOST_MESSAGES or size > MOST_CHARACTERS:
        raise ChatError("too_large", messages=MOST_MESSAGES, characters=MOST_CHARACTERS)
    return chat


def rateable(chat: Mapping, place: int, text: str | None = None) -> Mapping:
    """The message at a place, when it is a reply that the model made (and still says `text`).

    Raises:
        ChatError: It is none, or another by now.
    """
    message = chat["messages"][place] if 0 <= place < len(chat["messages"]) else {}
    if "seed" not in message or text not in (None, message["text"]):
        raise ChatError("not_rateable")
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
        add_turn(turns, message["role"], message["text"], len(chat["persona"]))
    return turns


def add_turn(turns: list[str], role: str, text: str, fixed: int = 0) -> bool:
    """Adds what somebody said to turns that alternate, the person's first: to the last turn, where that is hers too.

    Args:
        turns: What was said before; grows.
        role: `user` or `assistant`.
        text: What is added.
        fixed: Turns at the beginning that nothing is added to.

    Returns:
        Whether it has a place; an assistant's before the first user's has none.
    """
    speaker = 0 if role == "user" else 1
    if len(turns) > fixed and (len(turns) - 1) % 2 == speaker:
        turns[-1] += "\n" + text
    elif len(turns) % 2 == speaker:
        turns.append(text)
    else:
        return False
    return True


def persona_turns(text: str) -> list[str]:
    """Opening turns from lines, yours and the bot's by turns.

    Raises:
        ChatError: The last of your lines has no answer.
    """
    turns = [line.strip() for line in text.splitlines() if line.strip()]
    if len(turns) % 2:
        raise ChatError("odd_persona")
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
    """A file that `from_text` and `xianliao-prepare` read: roles and contents as in the API."""
    messages = [{"content" if name == "text" else name: value for name, value in m.items()} for m in chat["messages"]]
    content = {"title": chat["title"], "persona": chat["persona"], "messages": messages}
    return json.dumps(content, ensure_ascii=False, indent=1)


_HEADINGS = {"user": "## 我", "assistant": "## 闲聊"}
_PERSONA = "（面具）"


def to_markdown(chat: Mapping) -> str:
    """A file for people, that `from_text` reads as well; lines that would be headings are escaped by a backslash."""
    blocks = ["# " + chat["title"]]
    for place, turn in enumerate(chat["persona"]):
        blocks += [_HEADINGS[ROLES[place % 2]] + _PERSONA, _escaped(turn)]
    for message in chat["messages"]:
        blocks += ["---"] if message["role"] == "divider" else [_HEADINGS[message["role"]], _escaped(message["text"])]
    return "\n\n".join(blocks) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"^(?=[#\\]|---)", r"\\", text, flags=re.MULTILINE)


def from_text(text: object) -> dict:
    """Return the conversation of a file that `to_json` or `to_markdown` wrote, or of a list of messages in the API's form.

    Raises:
        ChatError: It cannot be read.
    """
    if not isinstance(text, str):
        raise ChatError("not_a_file")
    try:
        text = text.removeprefix("\ufeff")
        if not text.lstrip().startswith(("{", "[")):
            return within_bounds(checked(_from_markdown(text)))
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ChatError("not_a_file") from None
    return within_bounds(checked({"messages": value} if isinstance(value, list) else value))


def _from_markdown(text: str) -> dict:
    chat = new_chat()
    for kind, lines in _blocks(text.replace("\r\n", "\n").split("\n")):
        if kind.startswith("# "):
            chat["title"] = kind[2:]
        elif kind == "---":
            chat["messages"].append({"role": "divider", "text": ""})
        elif kind.removesuffix(_PERSONA) in _HEADINGS.values():
            lines = lines[1:] if lines[:1] == [""] else lines  # the empty lines that stand around a text
            lines = lines[:-1] if lines[-1:] == [""] else lines
            body = "\n".join(line.removeprefix("\\") for line in lines)
            role = "user" if kind.startswith(_HEADINGS["user"]) else "assistant"
            if kind.endswith(_PERSONA):
                chat["persona"].append(body)
            else:
                chat["messages"].append({"role": role, "text": body})
        else:
            raise ChatError("unknown_heading", heading=kind[:40])
    if not chat["messages"] and not chat["persona"]:
        raise ChatError("not_a_file")
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
            raise ChatError("not_a_file")
    return blocks

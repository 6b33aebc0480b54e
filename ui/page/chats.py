"""A conversation of the page: its structure, its bounds, and the turns that the model reads.

A chat is plain JSON, because the browser stores it: `{"id", "title", "persona": [turn, ...], "system", "messages": [...]}`.
A message is `{"role", "text"}` with the role `user`, `assistant` or `divider`. A chat from a browser or a file must pass
`checked` before it is used.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

from chatbot.chat.variants import MAX_VARIATION
from chatbot.errors import XianliaoError
from chatbot.text.dialogue import valid_text
from ui.page.text import TEXT
from ui.turns import MAX_CHARACTERS, join_messages

Role = Literal["user", "assistant", "divider"]
ROLES: tuple[Role, ...] = ("user", "assistant", "divider")
MAX_MESSAGES = 4_000
SPARE_MESSAGES, SPARE_CHARACTERS = 8, 100_000
"""A chat may exceed its bounds by this much: the last reply may, and the chat must still be exported and shortened."""

MAX_FIXED_CHARACTERS = 10_000
"""Room for a fixed reply to a person in crisis."""

MAX_PERSONA_TURNS, MAX_PERSONA_CHARACTERS = 64, 10_000
MAX_NUMBER = 10**18
"""Whole numbers of a message are smaller: results of the page have at most 64 bits."""

MAX_TITLE_CHARACTERS, MAX_NAME_CHARACTERS = 100, 100
MAX_THOUGHT_CHARACTERS = 4_000
MAX_COORDINATES = 1_024
"""Largest size of a latent variable, so of a point at which a reply was decoded."""

MAX_AVOIDED = 64
"""Number of earlier versions of a reply that trying again avoids."""

TITLE_CHARACTERS = 20
"""Length of a title that is made from the first message."""


class ChatMessage(TypedDict):
    """Message of a chat. A reply completed by the model has the fields that reproduce it, and a signature.

    Thoughts of a chat model are shown above its reply; the history does not have them.
    """

    role: Role
    text: str
    seed: NotRequired[float]
    temperature: NotRequired[float]
    top_p: NotRequired[float]
    variation: NotRequired[float]
    spread: NotRequired[float]
    point: NotRequired[list[float]]
    model: NotRequired[str]
    signature: NotRequired[str]
    thoughts: NotRequired[str]


class Chat(TypedDict):
    """A conversation.

    `system` is the system prompt, which chat models read. `avoid` holds the versions of the next reply that were seen; the
    browser adds it when the person tries again.
    """

    id: str
    title: str
    persona: list[str]
    system: str
    messages: list[ChatMessage]
    avoid: NotRequired[list[str]]


class ChatError(XianliaoError):
    """Something that cannot be done with a conversation.

    Attributes:
        name: Key of the message in `ui.page.text.TEXT`.
        values: Values of the placeholders in it.
    """

    def __init__(self, name: str, **values: object):
        super().__init__(TEXT["en"][name].format(**values))
        self.name, self.values = name, values


def new_chat(persona: Sequence[str] = ()) -> Chat:
    """Return an empty conversation; it gets an id with its first message."""
    return {"id": "", "title": "", "persona": list(persona), "system": "", "messages": []}


def checked(value: object) -> Chat:
    """Return a conversation from outside with its known fields only, after checking their types and sizes.

    Sizes are checked before any text is processed.

    Raises:
        ChatError: The value is not a conversation, or is too large.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
        raise ChatError("not_a_chat")
    if len(value["messages"]) > MAX_MESSAGES + SPARE_MESSAGES:
        raise too_large()
    persona, system = checked_persona(value.get("persona") or []), checked_system(value.get("system") or "")
    _check_characters(value["messages"], [*persona, system])
    messages = [checked_message(message) for message in value["messages"]]
    ident, title = (text if isinstance(text := value.get(name), str) else "" for name in ("id", "title"))
    title = " ".join(title[: 10 * MAX_TITLE_CHARACTERS].split())[:MAX_TITLE_CHARACTERS]
    return {
        "id": ident if len(ident) <= 32 and re.fullmatch("[0-9a-f]{1,32}", ident) else "",
        "title": valid_text(title),
        "persona": persona,
        "system": system,
        "messages": messages,
    }


def texts_to_avoid(value: object) -> frozenset[str]:
    """Return the replies under `avoid` in a conversation from a browser; a new attempt should differ from them.

    They are only compared with the new reply, so a value of any other form counts as an empty list.
    """
    texts = value.get("avoid") if isinstance(value, Mapping) else None
    return (
        frozenset(text for text in texts[:MAX_AVOIDED] if isinstance(text, str))
        if isinstance(texts, list)
        else frozenset()
    )


def checked_persona(turns: object) -> list[str]:
    """Return the turns of a persona.

    Raises:
        ChatError: The value is not a list of an even number of texts, or is too large.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise ChatError("odd_persona")
    if len(turns) > MAX_PERSONA_TURNS or sum(map(len, turns)) > MAX_PERSONA_CHARACTERS:
        raise ChatError("persona_too_large", lines=MAX_PERSONA_TURNS, characters=MAX_PERSONA_CHARACTERS)
    if len(turns) % 2:
        raise ChatError("odd_persona")
    return [valid_text(turn) for turn in turns]


def checked_system(text: object) -> str:
    """Return a system prompt without blanks around it.

    Raises:
        ChatError: The value is not a text, or is longer than a conversation.
    """
    if not isinstance(text, str):
        raise ChatError("not_a_chat")
    if len(text) > MAX_CHARACTERS:
        raise too_large()
    return valid_text(text.strip())


def checked_message(value: object) -> ChatMessage:
    """Return a message with its known fields only.

    Raises:
        ChatError: The value is not a message.
    """
    text = _text_of(value)
    if text is None or not isinstance(value, Mapping) or value.get("role") not in ROLES:
        raise ChatError("not_a_chat")
    message: ChatMessage = {"role": value["role"], "text": valid_text(text) if value["role"] != "divider" else ""}
    if value["role"] == "assistant":
        for name in ("seed", "temperature", "top_p", "variation", "spread"):
            if is_number(value.get(name)):
                message[name] = value[name]
        point = value.get("point")
        if isinstance(point, list) and 0 < len(point) <= MAX_COORDINATES and all(map(is_number, point)):
            message["point"] = point
        if isinstance(value.get("model"), str):
            message["model"] = valid_text(value["model"][:MAX_NAME_CHARACTERS])
        if isinstance(value.get("thoughts"), str):
            message["thoughts"] = valid_text(value["thoughts"][:MAX_THOUGHT_CHARACTERS])
        if isinstance(value.get("signature"), str):
            message["signature"] = valid_text(value["signature"][:MAX_NAME_CHARACTERS])
    return message


def _text_of(value: object) -> str | None:
    text = value.get("text", value.get("content", "")) if isinstance(value, Mapping) else None
    return text if isinstance(text, str) else None


def _check_characters(messages: Sequence[object], persona: Sequence[str]) -> None:
    characters = sum(len(_text_of(message) or "") for message in messages) + sum(map(len, persona))
    if characters > MAX_CHARACTERS + SPARE_CHARACTERS:
        raise too_large()


def is_number(value: object) -> bool:
    """Whether a value from outside is a number of a size that results of the page can have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def check_room(chat: Chat, characters: int = 0) -> None:
    """Check that a conversation can be continued by a message.

    Args:
        chat: The conversation.
        characters: Length of the message.

    Raises:
        ChatError: It would be too large.
    """
    characters += sum(len(message["text"]) for message in chat["messages"]) + sum(
        map(len, [*chat["persona"], chat["system"]])
    )
    if len(chat["messages"]) >= MAX_MESSAGES or characters > MAX_CHARACTERS:
        raise too_large()


def has_spare_room(chat: Chat) -> bool:
    """Whether a conversation with one more reply is within the bounds of `checked`."""
    characters = sum(len(message["text"]) for message in chat["messages"]) + sum(
        map(len, [*chat["persona"], chat["system"]])
    )
    within = characters <= MAX_CHARACTERS + SPARE_CHARACTERS - MAX_FIXED_CHARACTERS
    return within and len(chat["messages"]) < MAX_MESSAGES + SPARE_MESSAGES


def _characters_of(chat: Chat) -> int:
    return sum(len(message["text"]) for message in chat["messages"]) + sum(map(len, [*chat["persona"], chat["system"]]))


def too_large() -> ChatError:
    """Return the error for a conversation that is too large."""
    return ChatError("too_large", messages=MAX_MESSAGES, characters=MAX_CHARACTERS)


def turns_of(chat: Chat) -> list[str]:
    """Return the turns that the model reads: the persona, then the messages after the last divider.

    Consecutive messages of one role become one turn, joined by a newline. Messages without text are left out, and so
    is an assistant message before the first user message.
    """
    messages = chat["messages"]
    start = max((index + 1 for index, message in enumerate(messages) if message["role"] == "divider"), default=0)
    texts = [(message["role"], message["text"]) for message in messages[start:] if message["text"]]
    return join_messages(texts, chat["persona"])[0]


def persona_turns(text: str) -> list[str]:
    """Return the turns of a persona from its lines, the user's and the bot's alternating.

    Raises:
        ChatError: The last line of the user has no answer, or the text is too long.
    """
    if len(text) > 2 * MAX_PERSONA_CHARACTERS:
        raise ChatError("persona_too_large", lines=MAX_PERSONA_TURNS, characters=MAX_PERSONA_CHARACTERS)
    return checked_persona([line.strip() for line in text.splitlines() if line.strip()])


def with_message(chat: Chat, message: ChatMessage) -> Chat:
    """Return the conversation with one more message. The first one gives it an id and, if it has none, a title."""
    title, line = chat["title"], " ".join(message["text"][: 10 * TITLE_CHARACTERS].split())
    if not title and message["role"] == "user":
        title = line[:TITLE_CHARACTERS] + "…" * (len(line) > TITLE_CHARACTERS)
    ident = chat["id"] or secrets.token_hex(8)
    return {**chat, "id": ident, "title": title, "messages": [*chat["messages"], message]}


def with_new_id(chat: Chat) -> Chat:
    """Return the conversation under a new id, so that it does not replace its original."""
    return {**chat, "id": secrets.token_hex(8)}


def ends_with_user(chat: Chat) -> bool:
    """Whether the last message is the user's."""
    return bool(chat["messages"]) and chat["messages"][-1]["role"] == "user"


def up_to_last_user(chat: Chat) -> Chat:
    """Return the conversation up to the last message of the user."""
    messages = list(chat["messages"])
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return {**chat, "messages": messages}


def without_unanswered(chat: Chat) -> Chat:
    """Return the conversation without the user messages at its end."""
    messages = list(chat["messages"])
    while messages and messages[-1]["role"] == "user":
        messages.pop()
    return {**chat, "messages": messages}


def without_empty_reply(chat: Chat) -> Chat:
    """Return the conversation without a reply that was stopped before its first character."""
    messages = list(chat["messages"])
    while messages and messages[-1]["role"] == "assistant" and not messages[-1]["text"]:
        messages.pop()
    return {**chat, "messages": messages}


def without_last_exchange(chat: Chat) -> tuple[Chat, str]:
    """Return the conversation before the last user message, and that message; a divider at the end is removed alone."""
    messages = chat["messages"]
    if messages and messages[-1]["role"] == "divider":
        return {**chat, "messages": messages[:-1]}, ""
    last = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        return chat, ""
    return {**chat, "messages": messages[:last]}, messages[last]["text"]


def number_of(message: ChatMessage) -> int:
    """Return the index of the variant that a message holds; 0 for the original reply."""
    return int(min(MAX_VARIATION, max(0, message.get("variation", 0))))

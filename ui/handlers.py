"""What happens when a person sends a message; knows nothing about Gradio."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from chatbot import Chatbot, ChatSession, Reply
from chatbot.batching import Worker
from chatbot.dialogue import clean_turn
from ui.safety import Safety
from ui.text import TEXT

_MARKUP = re.compile("[<&](?=[A-Za-z/!?#])")
_MARK_BROKEN = re.compile("(?<=[<&])\u200b(?=[A-Za-z/!?#])")


def to_turns(history: Sequence[Mapping]) -> list[str]:
    """Alternating turns, the person's first, from a page's messages; consecutive messages of one role are joined.

    Args:
        history: `{"role": "user" | "assistant", "content": str | [{"type": "text", "text": str}]}`, oldest first.
    """
    turns: list[str] = []
    for message in history:
        speaker = 0 if message["role"] == "user" else 1
        text = _text_of(message["content"])
        if turns and (len(turns) - 1) % 2 == speaker:
            turns[-1] += "\n" + text
        elif turns or speaker == 0:
            turns.append(text)
    return turns


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return _MARK_BROKEN.sub("", content)
    parts = content if isinstance(content, (list, tuple)) else [content]
    return "".join(_text_of(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)


def shown_as_text(content: object) -> object:
    """A message's content such that a page that reads HTML shows it letter for letter.

    A zero-width space after `<` and `&` keeps tags and entities from being any; `to_turns` takes it out again.
    """
    if isinstance(content, str):
        return _MARKUP.sub("\\g<0>\u200b", content)
    if isinstance(content, (list, tuple)):
        return [shown_as_text(part) for part in content]
    if isinstance(content, Mapping) and isinstance(content.get("text"), str):
        return {**content, "text": shown_as_text(content["text"])}
    return content


def message_fault(bot: Chatbot, message: str, language: str) -> str | None:
    """Why a message cannot be sent, in the page's language, or None when it can."""
    words = TEXT[language]
    if not clean_turn(message):
        return words["empty"]
    if bot.count_tokens(message) > bot.max_message_tokens:
        return words["too_long"].format(characters=len(message), limit=bot.max_message_tokens)
    return None


def respond(
    bot: Chatbot,
    message: str,
    history: Sequence[Mapping],
    seed: float | None,
    temperature: float | None,
    top_p: float | None,
    language: str,
    worker: Worker | None = None,
    safety: Safety | None = None,
) -> Iterator[tuple[str, str]]:
    """The reply so far and the status line, again after each token; decoded by the worker where there is one.

    What `safety` answers itself never reaches the model.

    Raises:
        XianliaoError: The message cannot be answered; the message says why.
    """
    fixed = None if safety is None else safety.answer(message)
    if fixed is not None:
        yield fixed.text, ""
        return
    message = message if safety is None else safety.cleaned(message)
    turns = to_turns(history)
    if len(turns) % 2:  # the last message was never answered: it joins this one, or is dropped when that is too much
        both = f"{turns.pop()}\n{message}"
        message = both if message_fault(bot, both, language) is None else message
    session = ChatSession(worker or bot, turns, temperature=temperature, top_p=top_p)
    text = ""
    for text in session.stream(message, None if seed is None else int(seed)):
        yield text, ""
    yield text, status(bot, session.last_reply, language)


def status(bot: Chatbot, reply: Reply, language: str) -> str:
    """One line about a finished reply: tokens, speed, why it stopped, seed, bound."""
    words = TEXT[language]
    return words["status"].format(
        tokens=len(reply.token_ids),
        speed=reply.tokens_per_second,
        reason=words.get(reply.stop_reason, reply.stop_reason),
        seed=reply.seed,
        limit=bot.settings.limit_tokens,
    )

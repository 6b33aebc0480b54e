"""Dialogues and messages in JSON values, in the shapes that corpora and programs give them.

| shape | example |
|---|---|
| list of strings | `["你好", "你好呀"]` |
| list of turns | `{"dialog": …}`, also dialogue, turns, utterances, messages, conversations, conversation, items, content |
| turn | `{"role", "content"}`, `{"from", "value"}`, `{"speaker", "text"}`, `{"human", "assistant"}`, `{"message"}` |
| question, answer | Alpaca's `{"instruction", "input", "output", "history"}`, `{"prompt", "response"}`, `{"q", "a"}` |
| MOSS | `{"chat": {"turn_1": {"Human": "<|Human|>: …<eoh>", "MOSS": …}}}` |
| BELLE | an instruction that is a transcript: `Human:…\\nAssistant:…\\nHuman:…\\nAssistant:` |

Where speakers are named, consecutive messages of one speaker become one turn. System and tool messages, pictures and
the thoughts of reasoning models (`<think>…</think>`) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from chatbot.text.dialogue import valid_text
from data_prep.reading.chat_logs import parse_time
from data_prep.reading.labelled.prefixes import unlabelled
from data_prep.reading.messages import Message
from data_prep.reading.records import merge_speakers
from data_prep.reading.thoughts import without_thoughts

TURN_KEYS = (
    "dialog", "dialogue", "turns", "utterances", "messages", "conversations", "conversation", "items", "dialogs", "talk",
    "content", "chat", "data",
)  # fmt: skip
TEXT_KEYS = ("content", "value", "text", "utterance", "message", "msg", "sentence")
SPEAKER_KEYS = (
    "role", "from", "speaker", "name", "sender", "author", "user", "talker", "speaker_id", "from_name", "senderDisplayName",
    "senderName", "sender_name", "senderUsername", "nickname", "nickName", "accountName", "username", "user_name", "from_id",
    "isSend", "isSender", "is_send", "is_sender",
)  # fmt: skip
QUESTION_KEYS = (
    "instruction",
    "question",
    "query",
    "prompt",
    "q",
    "ask",
    "post",
    "input",
    "human",
    "user",
    "src",
    "source",
)
ANSWER_KEYS = (
    "output", "answer", "answers", "response", "responses", "completion", "target", "chosen", "a", "reply", "assistant",
    "bot", "gpt", "tgt", "comment",
)  # fmt: skip
PAIR_KEYS = (
    ("human", "assistant"), ("user", "assistant"), ("human", "gpt"), ("human", "bot"), ("user", "bot"), ("Human", "MOSS"),
    ("question", "answer"), ("q", "a"), ("prompt", "response"), ("input", "output"), ("query", "response"),
)  # fmt: skip
NOT_SPOKEN = frozenset(
    {"system", "tool", "function", "observation", "function_call", "tool_call", "tool_calls", "developer"}
)
TIME_KEYS = (
    "date", "time", "timestamp", "created_at", "createTime", "create_time", "send_time", "strTime", "formattedTime", "ts",
    "timestamp_ms",
)  # fmt: skip
NOTICE_KINDS = (
    "service",
    "system",
    "系统",
    "10000",
    "10002",
    "call",
    "guildmemberjoin",
    "channelpinned",
    "recipient",
    "join",
    "pin",
)
"""A message whose type begins with one of these was written by the chat program, not by a person."""
OBJECT_WITHOUT_TURNS, TEXT_WITHOUT_A_REPLY = "object_without_turns", "text_without_a_reply"
NOT_A_DIALOGUE = "not_a_list_of_strings"
SPLITS = ("train", "valid", "test")

_MOSS_NAME = re.compile(r"^\s*(?:<\|(?:Human|MOSS|Inner Thoughts|Commands|Results)\|>|\[(?:Human|MOSS)\])\s*[:：]\s*")
_TRANSCRIPT = re.compile(r"^[^\S\n]*(?:Human|Assistant|User|Bot|用户|助手|问|答)\s*[:：]", re.IGNORECASE | re.MULTILINE)
_DIGITS, _SECONDS = re.compile(r"\d+"), re.compile(r"\d{10}(?:\.\d{1,9})?")
_ZONE = re.compile(r"(?:\.\d+)?(?:Z|[+-]\d{2}:?\d{2})$")


def to_turns(value: object) -> list[str] | None:
    """Return the turns of a JSON value, or None if it is not a dialogue."""
    if isinstance(value, dict):
        return _of_object(value)
    if not isinstance(value, list):
        return None
    if all(isinstance(turn, str) for turn in value):
        return unlabelled([without_thoughts(turn) for turn in value])
    if value and all(isinstance(turn, dict) for turn in value):
        return _of_list(value)
    return None


def shape_of(value: object) -> str:
    """Return why a value is not a dialogue, one of the reasons of the report."""
    if isinstance(value, dict):
        if any(isinstance(value.get(key), str) for key in TEXT_KEYS):
            return TEXT_WITHOUT_A_REPLY
        return OBJECT_WITHOUT_TURNS
    return NOT_A_DIALOGUE


def _of_object(value: Mapping[str, Any]) -> list[str] | None:
    if isinstance(value.get("chat"), dict):  # MOSS
        return _of_pairs(
            [turn for _, turn in sorted(value["chat"].items(), key=_turn_number) if isinstance(turn, dict)]
        )
    answer = _answer(value)
    context = next((value[key] for key in ("context", "contexts", "history") if isinstance(value.get(key), list)), None)
    if answer is not None and (pairs := _question_and_answer(value, answer)) is not None:
        return pairs
    if answer is not None and context is not None and (turns := to_turns(context)) is not None:
        return [*turns, answer]
    for key in TURN_KEYS:
        if isinstance(value.get(key), list) and (turns := to_turns(value[key])) is not None:
            return turns
    pair = next((names for names in PAIR_KEYS if all(isinstance(value.get(name), str) for name in names)), None)
    return None if pair is None else [without_thoughts(value[name]) for name in pair]


def _turn_number(item: tuple[str, Any]) -> int:
    digits = _DIGITS.search(item[0])
    return int(digits[0]) if digits and len(digits[0]) < 10 else 0


def _of_list(turns: list[dict]) -> list[str] | None:
    """Return the turns of a list of objects: messages with speakers, pairs, or messages without speakers."""
    if all(any(all(isinstance(turn.get(name), str) for name in names) for names in PAIR_KEYS) for turn in turns):
        return _of_pairs(turns)
    messages: list[tuple[str, str]] = []
    unnamed: list[str] = []
    for turn in turns:
        speaker = speaker_of(turn)
        if speaker is not None and speaker.lower() in NOT_SPOKEN:
            continue
        text = text_of(turn)
        if text is None:
            return None
        if speaker is not None:
            messages.append((speaker, text))
        else:
            unnamed.append(text)
    if messages and unnamed:
        return None
    return merge_speakers((speaker, text) for speaker, text in messages if text) if messages else unnamed or None


def _of_pairs(turns: Iterable[dict]) -> list[str] | None:
    result: list[str] = []
    for turn in turns:
        names = next((pair for pair in PAIR_KEYS if all(isinstance(turn.get(name), str) for name in pair)), None)
        if names is None:
            return None
        result += [without_thoughts(_MOSS_NAME.sub("", turn[name])).strip() for name in names]
    return result or None


def speaker_of(turn: Mapping[str, Any]) -> str | None:
    """Return the speaker of a message: a name, a number, or an object with a name."""
    for key in SPEAKER_KEYS:
        speaker = turn.get(key)
        if isinstance(speaker, dict):
            speaker = next((speaker[name] for name in ("name", "nickname", "id") if speaker.get(name)), None)
        if isinstance(speaker, str | int) and speaker != "":
            return str(int(speaker) if isinstance(speaker, bool) else speaker)
    return None


def text_of(turn: Mapping[str, Any]) -> str | None:
    """Return the text of a message, empty for a message without text; None if no key holds one."""
    for key in TEXT_KEYS:
        if key in turn:
            content = turn[key]
            if isinstance(content, str):
                return _spoken(content)
            if content is None:
                return ""
            if isinstance(content, list):
                parts = [
                    part if isinstance(part, str) else part.get("text")
                    for part in content
                    if isinstance(part, str | dict)
                ]
                return _spoken("".join(part for part in parts if isinstance(part, str)))
    return "" if "tool_calls" in turn else None


def _spoken(text: str) -> str:
    """Return a text without thoughts; a space for a text that is one thought, so that no other turn takes its place."""
    return without_thoughts(text) or (" " if text else "")


def _answer(value: Mapping[str, Any]) -> str | None:
    for key in ANSWER_KEYS:
        given = value.get(key)
        if isinstance(given, list) and given and all(isinstance(text, str) for text in given) and key.endswith("s"):
            given = given[0]
        if isinstance(given, str):
            return without_thoughts(given)
    return None


def _question_and_answer(value: Mapping[str, Any], answer: str) -> list[str] | None:
    """Return the turns of a record with one question, its answer and perhaps earlier turns, in the form of Alpaca."""
    questions = [value[key] for key in QUESTION_KEYS if isinstance(value.get(key), str)]
    if not questions or isinstance(value.get("context"), list):
        return None
    history = value.get("history") or []
    earlier: list[str] | None = []
    if isinstance(history, list) and all(isinstance(pair, list) for pair in history):
        earlier = [turn for pair in history for turn in pair]
    elif isinstance(history, list):
        earlier = to_turns(history)
    if earlier is None or not all(isinstance(turn, str) for turn in earlier):
        return None
    question = "\n".join(filter(None, questions))
    return [*earlier, *(_transcript(question) or [question]), answer]


def _transcript(text: str) -> list[str] | None:
    """Return the turns of an instruction that is a transcript in which the assistant speaks next, or None."""
    marks = list(_TRANSCRIPT.finditer(text))
    if len(marks) < 2 or text[: marks[0].start()].strip() or text[marks[-1].end() :].strip():
        return None
    ends = [mark.start() for mark in marks[1:]]
    return [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=False)]


def is_message(value: object) -> bool:
    """Whether a JSON value is one message of a chat, so that a dialogue is a sequence of such values."""
    if not isinstance(value, dict) or any(
        isinstance(value.get(key), list) for key in TURN_KEYS if key not in TEXT_KEYS
    ):
        return False
    return speaker_of(value) is not None and text_of(value) is not None and _answer(value) is None


def has_time(value: Mapping[str, Any]) -> bool:
    """Whether a message says when it was sent: exports of chat programs have times, corpora have none."""
    return any(value.get(key) is not None for key in TIME_KEYS)


def to_message(number: int, value: Mapping[str, Any]) -> Message | None:
    """Return the message in a JSON value: of Telegram, Discord, Slack, WeChat exports and others; None for a notice."""
    text, speaker = text_of(value), speaker_of(value)
    kind = str(value.get("type", "message")).lower()
    is_notice = kind.startswith(NOTICE_KINDS) or value.get("subtype") not in (None, *_SPOKEN_SUBTYPES)
    author = value.get("author")
    is_bot = bool(value.get("bot_id")) or (isinstance(author, dict) and bool(author.get("isBot") or author.get("bot")))
    if text is None or is_notice or is_bot or (speaker or "").lower() in NOT_SPOKEN:
        return None
    attached = any(value.get(key) for key in ("photo", "file", "media_type", "attachments", "sticker_emoji", "files"))
    if value.get("forwarded_from") or (not text and attached):
        text = "[图片]"
    return Message(number, valid_text(speaker or ""), valid_text(text), _time_of(value), _chat_of(value))


_SPOKEN_SUBTYPES = ("thread_broadcast", "me_message", "file_share", "reply_broadcast", 0, "0", "")


def _time_of(value: Mapping[str, Any]) -> datetime | None:
    for key in TIME_KEYS:
        given = value.get(key)
        if isinstance(given, str) and _SECONDS.fullmatch(given):
            given = int(given[:10])
        if isinstance(given, int) and not isinstance(given, bool) and 10**9 <= given < 10**13:
            seconds = given if given < 10**11 else given // 1000
            return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
        if isinstance(given, str):
            return parse_time(_ZONE.sub("", given))
    return None


def _chat_of(value: Mapping[str, Any]) -> str:
    keys = ("conversation_id", "dialog_id", "dialogue_id", "session_id", "chat_id", "talker_id", "talkerId")
    return next((str(value[key]) for key in keys if isinstance(value.get(key), str | int)), "")

"""Chat template of a model, reduced to the text that it writes around the contents of turns.

The template is rendered once with placeholders for the contents, and its output is cut at the placeholders. Text that
people type is never rendered, so it can never become markup. `chatbot.text.template_sandbox` runs the template, with
bounds on time and memory; a template that asks for the date gets a constant, because the model input must depend on the
dialogue alone.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chatbot.errors import XianliaoError, first_line
from chatbot.storage import read_json, read_text
from chatbot.text.layouts import TurnMarks
from chatbot.text.tokenizer_training import SPECIAL_TOKENS

SETTINGS_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"
TOKEN_SETTINGS = ("bos_token", "eos_token", "pad_token", "unk_token")
SWITCH = "enable_thinking"
"""Template variable that says whether the model may think."""

_CONTENTS = tuple(f"xianliaoturn{number}content" for number in range(5))
_SYSTEM = "xianliaosystemcontent"
"""Placeholders for the contents of turns and of a system message: words that no template writes."""

Template = dict[str, str]
"""`chat_template`, and the names in `TOKEN_SETTINGS` of the special tokens that it can write."""


class TemplateError(XianliaoError):
    """A chat template cannot be read or used."""


def dialogpt_template() -> str:
    """Return the Jinja template that writes the `dialogpt` layout; special tokens in messages become plain text."""
    content = "message['content'] | trim"
    for name in SPECIAL_TOKENS:
        content += f" | replace('{name}', '[ {name[1:]}')"
    return (
        "{{- bos_token -}}{%- for message in messages -%}"
        "{%- if message['role'] not in ('user', 'assistant') -%}"
        "{{- raise_exception('This model has only user and assistant messages.') -}}{%- endif -%}"
        "{%- if not loop.first and message['role'] == loop.previtem['role'] -%}"
        "{{- raise_exception('User and assistant messages must alternate.') -}}{%- endif -%}"
        f"{{{{- {content} -}}}}{{{{- eos_token -}}}}{{%- endfor -%}}"
    )


def read_template(folder: Path) -> Template | None:
    """Return the chat template of a folder with its special tokens, or None if the folder has no template.

    Raises:
        TemplateError: A file is damaged.
    """
    path = folder / SETTINGS_FILE
    settings = read_json(path, TemplateError) if path.is_file() else {}
    try:
        path = folder / TEMPLATE_FILE
        template = read_text(path) if path.is_file() else settings.get("chat_template")
        if isinstance(template, list):  # several by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        tokens = {name: settings.get(name) for name in TOKEN_SETTINGS}
        tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise TemplateError(f"{path} cannot be read ({first_line(error)}). Copy it again.") from None
    if not isinstance(template, str) or not template:
        return None
    return {"chat_template": template, **{name: token for name, token in tokens.items() if isinstance(token, str)}}


def split_template(template: Mapping[str, str], thinks: bool = True) -> tuple[str, str, str, str]:
    """Return four texts: before the first content, from user to assistant, from assistant to user, and the last.

    The last asks for a reply, after the text from user to assistant: some templates write an open or an empty thinking
    block there and leave it out of the history.

    Args:
        template: From `read_template`.
        thinks: Value of `enable_thinking`, which some templates read.

    Raises:
        TemplateError: The template fails, or its output does not contain the contents word for word, in order, with the
            same text between them.
    """
    messages = _turns()
    opening, to_bot, to_person, *rest, request = _texts_around(messages, template, thinks)
    alone = _texts_around(messages[:1], template, thinks)
    if rest != [to_bot, to_person] or alone != [opening, request] or not request.startswith(to_bot) or not opening:
        raise TemplateError(
            "The chat template does not write every turn in the same way. Use a model whose template does, such as ChatML."
        )
    return opening, to_bot, to_person, request.removeprefix(to_bot)


def split_system(template: Mapping[str, str], parts: tuple[str, str, str, str]) -> tuple[str, str]:
    """Return the text before a system message, and the text between it and the first content.

    If the template refuses a system message, omits it or changes the turns because of it, the system prompt is put at
    the start of the user's first message, followed by an empty line.

    Args:
        template: From `read_template`.
        parts: From `split_template`.
    """
    opening, to_bot, to_person, ask = parts
    messages = [{"role": "system", "content": _SYSTEM}, *_turns()]
    try:
        before, after, *rest = _texts_around(messages, template, thinks=True)
        alone = _texts_around(messages[:2], template, thinks=True)
    except TemplateError:
        return opening, "\n\n"
    request = to_bot + ask
    is_usual = rest == [to_bot, to_person, to_bot, to_person, request] and alone == [before, after, request]
    return (before, after) if is_usual and before else (opening, "\n\n")


def _turns() -> list[dict[str, str]]:
    roles = [("user", "assistant")[number % 2] for number in range(len(_CONTENTS))]
    return [{"role": role, "content": content} for role, content in zip(roles, _CONTENTS, strict=True)]


def _texts_around(messages: Sequence[Mapping[str, str]], template: Mapping[str, str], thinks: bool) -> list[str]:
    """Return the text before the content of each turn, then the text at the end that asks for a reply."""
    text = _render(messages, template, thinks)
    parts = []
    for message in messages:
        part, separator, text = text.partition(message["content"])
        if not separator or any(content in part for content in (_SYSTEM, *_CONTENTS)):
            raise TemplateError(
                "The chat template does not show the turns word for word and in order. Use a model whose template does."
            )
        parts.append(part)
    if any(content in text for content in (_SYSTEM, *_CONTENTS)):
        raise TemplateError("The chat template shows a turn twice. Use a model whose template shows each turn once.")
    return [*parts, text]


def _render(messages: Sequence[Mapping[str, str]], template: Mapping[str, str], thinks: bool) -> str:
    from chatbot.text.template_sandbox import render  # jinja2 is needed for chat models alone

    variables: dict[str, Any] = {name: template.get(name, "") for name in TOKEN_SETTINGS}
    variables |= {
        "messages": list(map(dict, messages)),
        "add_generation_prompt": True,
        "tools": None,
        "documents": None,
        "enable_thinking": thinks,
    }
    try:
        return render(template["chat_template"], variables)
    except Exception as error:  # jinja raises many kinds, and a template can do anything wrong
        raise TemplateError(
            f"The chat template cannot be rendered ({first_line(error)}). Use a model with a usual template."
        ) from None


def to_marks(tokenizer: Tokenizer, template: Mapping[str, str], special_ids: frozenset[int]) -> TurnMarks:
    """Return the text of the template as ids, with its special tokens as special ids.

    Args:
        tokenizer: Tokenizer of the folder, unchanged.
        template: From `read_template`.
        special_ids: Ids that typed text never becomes.

    Raises:
        TemplateError: The template cannot be split, or ends the turns of the assistant with ordinary text.
    """
    parts = split_template(template)
    quiet = split_template(template, thinks=False) if SWITCH in template["chat_template"] else parts
    has_switch = quiet != parts and quiet[:3] == parts[:3]
    texts = (*parts, quiet[3] if has_switch else "", *split_system(template, parts))
    opening, to_bot, to_person, loud_ask, quiet_ask, *system = (
        tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts
    )
    if not (opening and to_bot and to_person) or to_person[0] not in special_ids:
        raise TemplateError(
            "The chat template does not end the turns of the assistant with a special token. Use a model whose template"
            " does."
        )
    return TurnMarks(opening, to_bot, to_person, (quiet_ask, loud_ask), has_switch, (system[0], system[1]))


def without_markup(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that encodes the text of every added token, even of <think>, as ordinary characters."""
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = True
    copied = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    copied.encode_special_tokens = True
    return copied


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is of GPT-2's kind: byte-pair encoding over bytes that are written as characters."""
    content = json.loads(tokenizer.to_str())
    return content["model"]["type"] == "BPE" and '"ByteLevel"' in json.dumps(content["decoder"])


def byte_characters() -> dict[str, int]:
    """Return the byte of each character in a byte-level vocabulary; printable bytes are their own characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + number): byte for number, byte in enumerate(others)}

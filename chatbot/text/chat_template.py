"""A chat model's template, taken apart: what it writes around the contents of turns.

The template is rendered once, with contents that stand for any other, and cut at them. What people type is never
rendered, so it can never become markup. transformers' sandbox runs the template; the date it may ask for is fixed,
because what the model has seen is a function of the dialogue alone.

Needs neither torch nor transformers, but for the moment of rendering.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from chatbot.errors import XianliaoError, first_line
from chatbot.text.layouts import TurnMarks

SETTINGS_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"
TOKEN_SETTINGS = ("bos_token", "eos_token", "pad_token", "unk_token")
_CONTENTS = tuple(f"xianliaoturn{number}content" for number in range(5))
_FIXED_DATE = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}{{ '' }}"  # what Llama's templates fall back to


class TemplateError(XianliaoError):
    """A chat template that cannot be read or taken apart; one sentence."""


def read_template(folder: Path) -> dict | None:
    """The chat template of a folder and the special tokens it may write, or None when the folder has no template.

    Returns:
        `chat_template` and those of `TOKEN_SETTINGS` that there are, all strings.

    Raises:
        TemplateError: A file is damaged.
    """
    try:
        path = folder / SETTINGS_FILE
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path = folder / TEMPLATE_FILE
        template = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
        if isinstance(template, list):  # several by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        tokens = {name: settings.get(name) for name in TOKEN_SETTINGS}
        tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise TemplateError(f"{path} cannot be read ({first_line(error)}); copy it again.") from None
    if not isinstance(template, str) or not template:
        return None
    tokens = {name: token for name, token in tokens.items() if isinstance(token, str)}
    return {"chat_template": template, **tokens}


def split_template(settings: dict) -> tuple[str, str, str]:
    """What the template writes before the first content, from user to assistant, and from assistant to user.

    Args:
        settings: From `read_template`.

    Raises:
        TemplateError: The template fails, or does not show the contents word for word, in order, in one pattern.
    """
    roles = [("user", "assistant")[number % 2] for number in range(len(_CONTENTS))]
    messages = [{"role": role, "content": content} for role, content in zip(roles, _CONTENTS, strict=True)]
    opening, to_bot, to_person, *rest, asking = _around(messages, settings)
    alone = _around(messages[:1], settings)
    # Some ask for a reply with more than they keep of it, such as an open <think>; ours are asked for as they are kept.
    if rest != [to_bot, to_person] or alone != [opening, asking] or not asking.startswith(to_bot) or not opening:
        raise TemplateError(
            "The chat template does not write every turn in the same way; use a model whose template does, such as ChatML."
        )
    return opening, to_bot, to_person


def _around(messages: list[dict], settings: dict) -> list[str]:
    """What is rendered around the contents of messages, the request for a reply last."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {name: settings.get(name, "") for name in TOKEN_SETTINGS}
    try:
        template = _FIXED_DATE + settings["chat_template"]
        (text,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **tokens)
    except Exception as error:  # jinja's many kinds, and whatever a template does wrong
        raise TemplateError(f"The chat template cannot be rendered ({first_line(error)}); copy it again.") from None
    parts = []
    for message in messages:
        part, found, text = text.partition(message["content"])
        if not found or any(content in part for content in _CONTENTS):
            raise TemplateError(
                "The chat template does not show the turns word for word and in order; use a model whose template does."
            )
        parts.append(part)
    if any(content in text for content in _CONTENTS):
        raise TemplateError("The chat template shows a turn twice; use a model whose template shows each once.")
    return [*parts, text]


def to_marks(tokenizer: Tokenizer, settings: dict, special_ids: frozenset[int]) -> TurnMarks:
    """The template's own text as ids, in which special tokens are special.

    Args:
        tokenizer: The folder's, as it is.
        settings: From `read_template`.
        special_ids: The ids that text never becomes.

    Raises:
        TemplateError: The template cannot be taken apart, or ends the assistant's turns with plain text.
    """
    texts = split_template(settings)
    marks = TurnMarks(*(tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts))
    if not (marks.opening and marks.to_bot and marks.to_person) or marks.to_person[0] not in special_ids:
        raise TemplateError(
            "The chat template ends the assistant's turns with no special token; use a model whose template does."
        )
    return marks


def without_markup(tokenizer: Tokenizer) -> Tokenizer:
    """A copy to which no text is markup: also tokens added as ordinary ones, such as <think>, are spelled out."""
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = True
    copied = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    copied.encode_special_tokens = True
    return copied


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether it is GPT-2's kind: byte-pair encoding over bytes that are written as characters."""
    content = json.loads(tokenizer.to_str())
    return content["model"]["type"] == "BPE" and '"ByteLevel"' in json.dumps(content["decoder"])


def byte_characters() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary: printable ones for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + number): byte for number, byte in enumerate(others)}

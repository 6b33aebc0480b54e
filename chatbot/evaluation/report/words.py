"""Texts of the report in English and Chinese: the page holds both and shows one, as `page.js` and `page.css` say."""

from __future__ import annotations

import functools
import re
from html import escape

from chatbot.language.translation import report_texts, to_chinese

_VALUE = re.compile(r"\{\d+\}")
_ENTRIES = re.compile(r"\((\d+) entries\)")


def chinese(text: str) -> str:
    """Return the Chinese of a text of the report: an entry of section "report", an entry after a name, or a message."""
    texts = report_texts()
    if text in texts:
        return texts[text]
    for pattern, template in _patterns():
        if match := pattern.fullmatch(text):
            return template.format(*map(chinese, match.groups()))
    name, colon, rest = text.rpartition(": ")
    return f"{name}：{texts[rest]}" if colon and rest in texts else to_chinese(text)


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return the entries that have values, the longest first, so that the most specific one matches."""
    templates = [english for english in report_texts() if "{0}" in english]
    return [
        (re.compile("(.*?)".join(map(re.escape, _VALUE.split(english))), re.DOTALL), report_texts()[english])
        for english in sorted(templates, key=len, reverse=True)
    ]


def both(text: str) -> str:
    """Return a text in both languages as HTML; a text that is the same in both, such as a name, only once."""
    return _spans(text, chinese(text), "span")


def both_settings(text: str) -> str:
    """Return the settings of a method in both languages as HTML."""
    return _spans(text, chinese_settings(text), "span")


def chinese_settings(text: str) -> str:
    """Return the settings of a method in Chinese; their names are those of the options, as in English."""
    return _ENTRIES.sub(r"（\1 项）", text).replace(" （", "（")


def _spans(english: str, translated: str, tag: str) -> str:
    if translated == english:
        return escape(english)
    return (
        f'<{tag} class="en" lang="en">{escape(english)}</{tag}>'
        f'<{tag} class="zh" lang="zh-CN">{escape(translated)}</{tag}>'
    )


def attribute(name: str, text: str) -> str:
    """Return an attribute in English, with the Chinese beside it for `page.js`."""
    return f'{name}="{escape(text)}" data-zh-{name}="{escape(chinese(text))}"'


def label_in_both(svg: str, label: str) -> str:
    """Return a plot with one of its labels in both languages."""
    return svg.replace(f">{escape(label)}</text>", f">{_spans(label, chinese(label), 'tspan')}</text>")

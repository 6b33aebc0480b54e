"""Everything the page says, in Chinese and English; the browser's language chooses."""

from __future__ import annotations

TITLE = "闲聊 xianliao"
"""Of the browser tab; a plain string, because translated titles show their key there."""

TEXT = {
    "zh": {
        "heading": "## 闲聊",
        "description": "你在和一个聊天程序说话：它是一个很小的语言模型，不是人，说的话不一定对，也不是建议。",
        "placeholder": "说点什么吧",
        "message": "消息",
        "input_placeholder": "输入消息，回车发送",
        "empty": "还没有写内容，写点什么再发送吧。",
        "too_long": "这条消息有 {characters} 个字，太长了（最多 {limit} 个词元），分几次发吧。",
        "settings": "设置",
        "seed": "随机种子（空着就每次不同）",
        "temperature": "温度",
        "top_p": "核采样 top-p",
        "eos": "说完了",
        "floor": "话有点长，收尾了",
        "limit": "到长度上限，截断了",
        "status": "{tokens} 个词元，{speed:.0f} 词元/秒，{reason}，种子 {seed}；每条回复最多 {limit} 个词元",
    },
    "en": {
        "heading": "## 闲聊 (xianliao, small talk)",
        "description": "You are talking to a program: a small Chinese language model, not a person. What it says may be"
        " wrong and is no advice.",
        "placeholder": "Say something, in Chinese",
        "message": "Message",
        "input_placeholder": "Type a message, Enter sends it",
        "empty": "The message is empty; type something first.",
        "too_long": "The message has {characters} characters, which is too long (at most {limit} tokens); send it in parts.",
        "settings": "Settings",
        "seed": "Seed (empty: different every time)",
        "temperature": "Temperature",
        "top_p": "Nucleus top-p",
        "eos": "finished",
        "floor": "long enough, wrapped up",
        "limit": "cut off at the limit",
        "status": "{tokens} tokens, {speed:.0f} tokens/s, {reason}, seed {seed}; a reply has at most {limit} tokens",
    },
}

EXAMPLES = ["你好", "今天天气真好，想出去走走", "周末有什么好看的电影吗", "最近工作好累啊", "你是谁？"]


def language_of(accept_language: str | None) -> str:
    """`zh` or `en`, from the browser's Accept-Language header."""
    first = (accept_language or "").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"

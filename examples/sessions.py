"""Messages with roles, and a conversation that is saved and continued: python examples/sessions.py [CHECKPOINT]."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from chatbot import Chatbot, ChatSession

bot = Chatbot.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "default")
print(bot)

messages = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好呀"},
    {"role": "user", "content": "今天心情不太好"},
]
print(bot.reply(messages, seed=0) == bot.reply(["你好", "你好呀", "今天心情不太好"], seed=0))

with TemporaryDirectory() as folder:
    path = Path(folder) / "chat.json"
    session = ChatSession(bot, temperature=0.5)
    session.reply("我养了一只猫", seed=1)
    session.save(path)
    later = ChatSession.load(bot, path)  # in another process, or with another bot
    later.reply("它今天不吃饭", seed=1)
    print(later)
    for message in later.messages:
        print(f"{message['role']}: {message['content']}")

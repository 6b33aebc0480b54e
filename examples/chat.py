"""Chat from Python: python examples/chat.py [CHECKPOINT]."""

import sys

from chatbot import Chatbot, ChatSession

bot = Chatbot.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "default")

print(bot.reply(["你好", "你好呀", "今天心情不太好"], seed=0))  # the history, oldest turn first

for text in bot.stream(["周末去哪儿玩"], seed=1, candidates=1):  # the text so far; the best of several comes whole
    print(text)

session = ChatSession(bot)
for message in ("我养了一只猫", "它今天不吃饭"):
    reply = session.reply(message, seed=2)
    print(f"{message} → {reply} ({session.last_reply.stop_reason})")

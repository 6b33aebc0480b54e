"""python -m chatbot is xianliao-chat."""

import sys

from chatbot.cli import chat

sys.exit(chat())

"""`python -m chatbot` runs xianliao-chat."""

import sys

from chatbot.cli import chat

sys.exit(chat(None))

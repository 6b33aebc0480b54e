"""`python -m chatbot.evaluation` runs xianliao-evaluate."""

import sys

from chatbot.cli import evaluate

sys.exit(evaluate(None))

"""python -m chatbot.evaluation is xianliao-evaluate."""

import sys

from chatbot.cli import evaluate

sys.exit(evaluate())

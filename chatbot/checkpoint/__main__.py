"""`python -m chatbot.checkpoint` converts checkpoints."""

import sys

from chatbot.checkpoint.convert import main

sys.exit(main(None))

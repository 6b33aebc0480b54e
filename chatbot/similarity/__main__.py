"""python -m chatbot.similarity trains token vectors for a checkpoint."""

import sys

from chatbot.similarity.train import main

sys.exit(main())

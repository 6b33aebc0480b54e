"""Entry point of `python -m training`, the same as xianliao-train."""

import sys

from training.cli import main

sys.exit(main(None))

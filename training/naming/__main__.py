"""Entry point of `python -m training.naming`, the same as xianliao-name."""

import sys

from training.naming.cli import main

sys.exit(main(None))

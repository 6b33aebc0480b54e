"""Entry point of `python -m training.likeness`, the same as xianliao-likeness."""

import sys

from training.likeness.cli import main

sys.exit(main(None))

"""Entry point of `python -m data_prep`, the same as xianliao-prepare."""

import sys

from data_prep.cli import main

sys.exit(main())

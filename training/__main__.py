"""python -m training is xianliao-train."""

import sys

from training.cli import main

sys.exit(main())

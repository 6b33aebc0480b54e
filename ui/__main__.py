"""python -m ui is xianliao-serve."""

import sys

from ui.cli import main

sys.exit(main())

"""python -m data_prep is xianliao-prepare."""

import sys

from data_prep.cli import main

sys.exit(main())

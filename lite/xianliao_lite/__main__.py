"""python -m xianliao_lite."""

import sys

from xianliao_lite.cli import main

sys.exit(main())
